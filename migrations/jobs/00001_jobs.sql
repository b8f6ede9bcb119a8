-- Why: upload sessions and publication jobs, as GET /api/uploads and /api/jobs read them. Derived from the
-- facts of uploads and jobs, each of which carries the whole entity; see projections/jobs. Ids compare by
-- bytes (COLLATE "C"), which for UUIDv7 is the order of time.

-- +goose Up
CREATE TABLE position (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    sequence   bigint      NOT NULL, -- of the last event applied; 0 before the first
    stream     text        NOT NULL, -- identity of the stream it counts in; '' before the first start
    updated_at timestamptz NOT NULL  -- when it moved last: for people, not derived from events
);

CREATE TABLE uploads (
    id           text COLLATE "C" PRIMARY KEY,
    job_id       text COLLATE "C" NOT NULL,
    image        text        NOT NULL,
    version      text        NOT NULL,
    state        text        NOT NULL, -- open, completed, aborted, expired
    initiated_at timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL, -- time of its last fact
    sequence     bigint      NOT NULL, -- of its last fact
    session      jsonb       NOT NULL  -- events.Upload, without the bytes of made metadata
);

CREATE TABLE jobs (
    id             text COLLATE "C" PRIMARY KEY,
    upload_id      text COLLATE "C" NOT NULL,
    image          text        NOT NULL,
    version        text        NOT NULL,
    state          text        NOT NULL, -- queued, running, succeeded, failed, cancelled
    queued_at      timestamptz NOT NULL,
    ended_at       timestamptz,          -- null until it has ended
    updated_at     timestamptz NOT NULL, -- time of its last fact
    problem_code   text        NOT NULL, -- '' unless it failed
    problem_detail text        NOT NULL,
    sequence       bigint      NOT NULL, -- of its last fact
    job            jsonb       NOT NULL  -- events.Job; its steps are an array, in order
);
-- Newest first, of all states and of one.
CREATE INDEX jobs_newest ON jobs (queued_at DESC, id DESC);
CREATE INDEX jobs_newest_of_state ON jobs (state, queued_at DESC, id DESC);
