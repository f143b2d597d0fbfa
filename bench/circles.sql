-- On top of the demo data: eight more circles of 20 members, copies of Atelier, so that a page of 20 circles is full.
INSERT INTO circles
SELECT copy.*
FROM circles AS atelier, generate_series(13, 20) AS n,
    jsonb_populate_record(atelier, jsonb_build_object(
        'id', '019b8d62-7e68-7007-8000-' || lpad(to_hex(n), 12, '0'),
        'name', 'Studio ' || n,
        'name_key', 'studio ' || n)) AS copy
WHERE atelier.name = 'Atelier';

INSERT INTO circle_members
SELECT copy.*
FROM circles AS atelier
    JOIN circle_members AS member ON member.circle_id = atelier.id AND member.is_active,
    generate_series(13, 20) AS n,
    jsonb_populate_record(member, jsonb_build_object(
        'id', overlay(member.id::text PLACING lpad(to_hex(n), 4, '0') FROM 25),
        'circle_id', '019b8d62-7e68-7007-8000-' || lpad(to_hex(n), 12, '0'))) AS copy
WHERE atelier.name = 'Atelier';

ANALYZE;
