-- Captures: one file for each lease of a job that captures.
CREATE TABLE captures (
    job     INTEGER NOT NULL,
    number  INTEGER NOT NULL,             -- the lease's
    probe   INTEGER NOT NULL,
    site    TEXT NOT NULL,
    stored  INTEGER NOT NULL,             -- bytes of the file that are here, counted from its beginning
    packed  INTEGER NOT NULL,             -- bytes that they take, with what a row costs
    checked INTEGER NOT NULL DEFAULT 0,   -- whether their digest is the one that the probe told
    first   INTEGER NOT NULL,             -- when something of it came first
    last    INTEGER NOT NULL,             -- when bytes of it came last
    over    BLOB,                         -- what it came to, encoded: the record's projection, which a rebuild makes anew
    removed INTEGER,                      -- when its bytes were removed
    remover TEXT,                         -- who, or why
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE INDEX captures_by_age ON captures (last) WHERE removed IS NULL;

-- Their bytes as they came, packed. No projection: they are the evidence.
CREATE TABLE capture_chunks (
    job     INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    start   INTEGER NOT NULL,             -- bytes of the file before these
    length  INTEGER NOT NULL,             -- bytes of the file in these
    packed  BLOB NOT NULL,
    PRIMARY KEY (job, number, start)
);

-- Who has read them.
CREATE TABLE capture_downloads (
    job     INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    start   INTEGER NOT NULL              -- from which byte on
);
CREATE INDEX capture_downloads_by_capture ON capture_downloads (job, number, at);
