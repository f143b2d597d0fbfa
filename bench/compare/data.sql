-- The data of bench/run.sh, with each circle at its limit of tasks in hand: a created task then waits, as in a busy
-- circle, and creating one writes the same rows however often it is repeated.
\ir ../circles.sql

INSERT INTO tasks
SELECT copy.*
FROM (
        SELECT task.*
        FROM tasks AS task JOIN circles AS circle ON circle.id = task.circle_id
        WHERE circle.name = 'Atelier' AND task.status = 'ASSIGNED'
        ORDER BY task.id LIMIT 1
    ) AS task,
    circles AS studio,
    jsonb_populate_record(task::tasks, jsonb_build_object('id', gen_random_uuid(), 'circle_id', studio.id)) AS copy
WHERE studio.name LIKE 'Studio %';

UPDATE circles
SET max_concurrent_tasks = least(max_concurrent_tasks, in_hand.count)
FROM (
        SELECT circle_id, count(*) FROM tasks
        WHERE status IN ('ASSIGNED', 'IN_PROGRESS', 'IN_REVIEW', 'CHANGES_REQUESTED') GROUP BY circle_id
    ) AS in_hand
WHERE in_hand.circle_id = circles.id;

VACUUM ANALYZE;
