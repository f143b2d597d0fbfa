-- On top of the demo data: 100 owners, the demo user among them, with 2,000 circles, each shared with one
-- more owner, and between them 20,000 agents and members, 100,000 tasks, 10,000 conversations, 200,000
-- messages and 100,000 events. Row i of a table belongs to circle i mod 2,000 and owner i mod 100, so that
-- neighbours in time are strangers otherwise, as they are in a busy database.

-- A time-ordered id (UUID v7) for row i of table t.
CREATE FUNCTION pg_temp.id(t int, i int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT ('019c' || lpad(to_hex(i), 8, '0') || '7' || lpad(to_hex(t), 3, '0') || '8000' || lpad(to_hex(i), 12, '0'))::uuid
$$;

-- Milliseconds after the instant of that id's row 0.
CREATE FUNCTION pg_temp.at(i int) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp((x'019c00000000'::bigint + i) / 1000.0)
$$;

CREATE FUNCTION pg_temp.status(i int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN i % 20 < 12 THEN 'COMPLETED'
        WHEN i % 20 < 14 THEN 'IN_PROGRESS'
        WHEN i % 20 < 15 THEN 'IN_REVIEW'
        WHEN i % 20 < 17 THEN 'PENDING'
        WHEN i % 20 < 19 THEN 'ASSIGNED'
        ELSE 'BLOCKED'
    END
$$;

INSERT INTO users (id, created_at, updated_at, email, email_key, name, password_hash)
SELECT pg_temp.id(1, i), pg_temp.at(i), pg_temp.at(i), format('owner%s@example.com', i), format('owner%s@example.com', i), 'Owner ' || i, '!'
FROM generate_series(1, 99) AS i;

CREATE TEMPORARY TABLE owner AS
SELECT i AS n, CASE i WHEN 0 THEN users.id ELSE pg_temp.id(1, i) END AS id
FROM generate_series(0, 99) AS i, users
WHERE users.email_key = 'demo@example.com';

INSERT INTO agents (id, created_at, updated_at, owner_id, name, name_key, model_id, persona_id, status, last_active_at)
SELECT pg_temp.id(5, i), pg_temp.at(i), pg_temp.at(i), owner.id, 'Agent ' || i, 'agent ' || i, model.ids[1 + i % cardinality(model.ids)],
    persona.ids[1 + i % cardinality(persona.ids)], CASE WHEN i / 100 % 5 = 0 THEN 'BUSY' ELSE 'IDLE' END, pg_temp.at(i * 7919 % 100000)
FROM generate_series(0, 19999) AS i
    JOIN owner ON owner.n = i % 100,
    (SELECT array_agg(id ORDER BY id) AS ids FROM models) AS model,
    (SELECT array_agg(id ORDER BY id) AS ids FROM personas) AS persona;

INSERT INTO circles (id, created_at, updated_at, owner_id, project_id, name, name_key, status)
SELECT pg_temp.id(7, i), pg_temp.at(i), pg_temp.at(i), owner.id,
    CASE WHEN i % 100 = 0 THEN (SELECT id FROM projects WHERE name = 'Atlas') END,
    'Circle ' || i, 'circle ' || i, CASE WHEN i / 100 % 10 < 7 THEN 'RUNNING' ELSE 'STOPPED' END
FROM generate_series(0, 1999) AS i
    JOIN owner ON owner.n = i % 100;

INSERT INTO circle_collaborators (id, created_at, updated_at, circle_id, user_id, role)
SELECT pg_temp.id(8, i), pg_temp.at(i), pg_temp.at(i), pg_temp.id(7, i), owner.id, 'EDITOR'
FROM generate_series(0, 1999) AS i
    JOIN owner ON owner.n = (i + 1) % 100;

INSERT INTO circle_members (id, created_at, updated_at, circle_id, agent_id, role, joined_at)
SELECT pg_temp.id(9, i), pg_temp.at(i), pg_temp.at(i), pg_temp.id(7, i % 2000), pg_temp.id(5, i),
    CASE WHEN i < 2000 THEN 'LEAD' ELSE 'MEMBER' END, pg_temp.at(i)
FROM generate_series(0, 19999) AS i;

INSERT INTO tasks (id, created_at, updated_at, circle_id, title, requires_review, status, priority, priority_rank, assignee_id, reviewer_id,
    started_at, completed_at, cycle_seconds, due_at)
SELECT pg_temp.id(10, i), pg_temp.at(i), pg_temp.at(i), pg_temp.id(7, i % 2000), 'Task ' || i, true, pg_temp.status(i / 2000),
    (ARRAY['LOW', 'MEDIUM', 'HIGH', 'CRITICAL'])[1 + i / 2000 % 4], (ARRAY[8, 5, 3, 1])[1 + i / 2000 % 4],
    pg_temp.id(5, i % 20000), pg_temp.id(5, (i + 2000) % 20000),
    pg_temp.at(i), CASE pg_temp.status(i / 2000) WHEN 'COMPLETED' THEN pg_temp.at(i + 5000) END,
    CASE pg_temp.status(i / 2000) WHEN 'COMPLETED' THEN 5 END, CASE WHEN i % 3 = 0 THEN pg_temp.at(i + 86400000) END
FROM generate_series(0, 99999) AS i;

INSERT INTO conversations (id, created_at, updated_at, owner_id, circle_id, topic, status, max_turns, turns_taken, last_seq, started_at,
    last_message_at)
SELECT pg_temp.id(11, i), pg_temp.at(i), pg_temp.at(i), owner.id, pg_temp.id(7, i % 2000), 'Conversation ' || i,
    CASE WHEN i / 2000 = 0 THEN 'ACTIVE' ELSE 'COMPLETED' END, 20, 15, 20, pg_temp.at(i), pg_temp.at(i + 20000)
FROM generate_series(0, 9999) AS i
    JOIN owner ON owner.n = i % 100;

INSERT INTO conversation_participants (conversation_id, agent_id, position, joined_at)
SELECT pg_temp.id(11, i), pg_temp.id(5, i % 2000 + p * 2000), p, pg_temp.at(i)
FROM generate_series(0, 9999) AS i, generate_series(0, 2) AS p;

-- Every fourth message is the owner's, the others go round the three participants.
INSERT INTO messages (id, created_at, conversation_id, seq, role, agent_id, user_id, author_name, content)
SELECT pg_temp.id(12, i), pg_temp.at(i), pg_temp.id(11, i % 10000), i / 10000 + 1,
    CASE WHEN i / 10000 % 4 = 3 THEN 'USER' ELSE 'ASSISTANT' END,
    CASE WHEN i / 10000 % 4 < 3 THEN pg_temp.id(5, i % 2000 + i / 10000 % 4 * 2000) END,
    CASE WHEN i / 10000 % 4 = 3 THEN owner.id END,
    'Author', repeat('words and more words ', 1 + i % 20)
FROM generate_series(0, 199999) AS i
    JOIN owner ON owner.n = i % 100;

INSERT INTO events (id, position, type, subject_type, subject_id, owner_id, circle_id, agent_id, actor_user_id, payload, occurred_at)
SELECT pg_temp.id(13, i), 1000000 + i, 'task.created', 'task', pg_temp.id(10, i), owner.id, pg_temp.id(7, i % 2000),
    pg_temp.id(5, i % 20000), owner.id, jsonb_build_object('v', 1, 'version', 1, 'title', 'Task ' || i, 'toStatus', 'PENDING'), pg_temp.at(i)
FROM generate_series(0, 99999) AS i
    JOIN owner ON owner.n = i % 100;

-- The sessions that a busy hour ends.
INSERT INTO revoked_tokens (jti, created_at, user_id, expires_at, revoked_at, reason)
SELECT pg_temp.id(14, i), pg_temp.at(i), owner.id, pg_temp.at(i), pg_temp.at(i), 'LOGOUT'
FROM generate_series(0, 9999) AS i
    JOIN owner ON owner.n = i % 100;

VACUUM ANALYZE;
