-- The mutation of PostGraphile: what `createTask` of the server does, in one statement.
CREATE FUNCTION open_task(circle_id uuid, title text, description text) RETURNS tasks
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    circle circles;
    task tasks;
    -- A UUID of version 7: sorted by time, as in the server.
    time_digits constant text := lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0');
BEGIN
    SELECT * INTO circle FROM circles WHERE id = open_task.circle_id AND status <> 'ARCHIVED' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE 'not found';
    END IF;
    INSERT INTO tasks (id, created_at, updated_at, circle_id, title, description, created_by, requires_review)
    VALUES ((time_digits || '7' || right(replace(gen_random_uuid()::text, '-', ''), 19))::uuid, now(), now(),
        circle.id, open_task.title, open_task.description, circle.owner_id, circle.require_review)
    RETURNING * INTO task;
    INSERT INTO events (id, type, subject_type, subject_id, owner_id, circle_id, project_id, actor_user_id, payload,
        request_id, occurred_at)
    VALUES ((time_digits || '7' || right(replace(gen_random_uuid()::text, '-', ''), 19))::uuid, 'task.created', 'task',
        task.id, circle.owner_id, circle.id, circle.project_id, circle.owner_id,
        jsonb_build_object('v', 1, 'title', task.title, 'priority', task.priority, 'toStatus', task.status,
            'changed', '[]'::jsonb, 'version', task.version),
        replace(gen_random_uuid()::text, '-', ''), now());
    RETURN task;
END
$$;

-- `Circle` is PostGraphile's name for a geometric type of PostgreSQL.
COMMENT ON TABLE circles IS '@name team';
-- Lets clients filter by a column without an index.
COMMENT ON COLUMN circle_members.is_active IS '@behavior +attribute:filterBy';
