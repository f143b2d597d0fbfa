-- On top of bench/many.sql: a user who may read 0.1 % of the rows. The rows of this user are the oldest of all, and
-- most of the others belong to one circle, so that the planner expects many rows in each circle.

CREATE FUNCTION pg_temp.few(t int, i int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT ('019b0000-0000-7' || lpad(to_hex(t), 3, '0') || '8000' || lpad(to_hex(i), 12, '0'))::uuid
$$;

INSERT INTO users (id, created_at, updated_at, email, email_key, name, password_hash)
SELECT pg_temp.few(1, 0), now(), now(), 'few@example.com', 'few@example.com', 'Few', password_hash
FROM users WHERE email_key = 'demo@example.com';

INSERT INTO circles (id, created_at, updated_at, owner_id, name, name_key)
SELECT pg_temp.few(2, i), now(), now(), pg_temp.few(1, 0), 'Few ' || i, 'few ' || i
FROM generate_series(0, 4) AS i;

UPDATE tasks SET circle_id = (SELECT circle_id FROM tasks ORDER BY id DESC LIMIT 1)
WHERE id > (SELECT id FROM tasks ORDER BY id OFFSET 5000 LIMIT 1);
UPDATE conversations SET circle_id = (SELECT circle_id FROM conversations ORDER BY id DESC LIMIT 1)
WHERE id > (SELECT id FROM conversations ORDER BY id OFFSET 500 LIMIT 1);
UPDATE events SET circle_id = (SELECT circle_id FROM tasks ORDER BY id DESC LIMIT 1)
WHERE position > 5000;

INSERT INTO tasks (id, created_at, updated_at, circle_id, title, requires_review)
SELECT pg_temp.few(3, i), to_timestamp(i), to_timestamp(i), pg_temp.few(2, i % 5), 'Task ' || i, true
FROM generate_series(0, 99) AS i;

INSERT INTO conversations (id, created_at, updated_at, owner_id, circle_id, topic)
SELECT pg_temp.few(4, i), to_timestamp(i), to_timestamp(i), pg_temp.few(1, 0),
    CASE WHEN i % 10 > 0 THEN pg_temp.few(2, i % 5) END, 'Conversation ' || i
FROM generate_series(0, 99) AS i;

INSERT INTO events (id, position, type, subject_type, subject_id, owner_id, circle_id, payload, occurred_at)
SELECT pg_temp.few(5, i), i - 1000, 'task.deleted', 'task', pg_temp.few(3, i),
    CASE WHEN i % 2 = 0 THEN pg_temp.few(1, 0) END, pg_temp.few(2, i % 5), '{"v": 1, "title": "A task", "changed": []}', to_timestamp(i)
FROM generate_series(0, 99) AS i;
