-- Why: the documents of those who may read private images are made by the node that serves them, of all the other tables. It keeps
-- what it made for as long as the revision is the same. What the tables hold is not changed: private images were in them before.

-- +goose Up
-- revision: the transaction that changed one of the other tables last. Like updated_at, it is not derived from events.
ALTER TABLE position ADD COLUMN revision bigint NOT NULL DEFAULT 0;
