-- Why: with thousands of versions the documents are too large to be written anew for each fact. The nodes that serve them keep them
-- in memory, and read what has changed since; every row says which fact it is of.

-- +goose Up
DROP TABLE documents;

CREATE INDEX versions_by_sequence ON versions (sequence);
CREATE INDEX versions_by_change ON versions (changed_sequence) WHERE changed_sequence > 0;
CREATE INDEX aliases_by_change ON aliases (changed_sequence);
CREATE INDEX deltas_by_change ON deltas (changed_sequence);
