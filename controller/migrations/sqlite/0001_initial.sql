-- Numbers of 64 bits without a sign (stream ids) are stored as the signed number with the same bits.
-- Times are Unix milliseconds. Positions and ranks stay below 2^60.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

-- Probes, also those that are only invited and those that are revoked.
CREATE TABLE probes (
    key       INTEGER PRIMARY KEY,
    id        TEXT NOT NULL UNIQUE,
    site      TEXT NOT NULL,
    labels    TEXT NOT NULL,              -- JSON array
    roles     TEXT NOT NULL,              -- JSON array
    standing  TEXT NOT NULL CHECK (standing IN ('invited', 'enrolled', 'revoked')),
    reason    TEXT,
    since     INTEGER NOT NULL,
    created   INTEGER NOT NULL,
    hardware  TEXT,
    version   TEXT,
    last_seen INTEGER,
    birth     BLOB                        -- the last birth, as it came
);

CREATE TABLE certificates (
    serial    TEXT PRIMARY KEY,
    probe     INTEGER NOT NULL REFERENCES probes (key),
    not_after INTEGER NOT NULL,
    revoked   INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX certificates_probe ON certificates (probe);

CREATE TABLE enrol_tokens (
    probe   INTEGER PRIMARY KEY REFERENCES probes (key),
    hash    BLOB NOT NULL,                -- SHA-256 of the secret
    expires INTEGER NOT NULL,
    used    INTEGER                       -- when it was used
);

CREATE TABLE api_tokens (
    name    TEXT PRIMARY KEY,
    hash    BLOB NOT NULL UNIQUE,         -- SHA-256 of the token
    scope   TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER
) WITHOUT ROWID;

CREATE TABLE dashboard_users (
    name    TEXT PRIMARY KEY,
    hash    BLOB NOT NULL,                -- SHA-256 of the password, which is random
    created INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE jobs (
    id        INTEGER PRIMARY KEY,
    spec      BLOB NOT NULL,              -- as it is signed
    request   TEXT NOT NULL,              -- as it was submitted, JSON
    summary   TEXT NOT NULL,
    actor     TEXT NOT NULL,
    whole     INTEGER NOT NULL,           -- one probe does all of it
    state     TEXT NOT NULL,
    reason    TEXT,
    outcome   TEXT,                       -- how it ends once its leases have ended, JSON
    created   INTEGER NOT NULL,
    started   INTEGER,
    ended     INTEGER,
    last_grant INTEGER NOT NULL
);
CREATE INDEX jobs_state ON jobs (state, id);

-- One for shared work, one per vantage point otherwise.
CREATE TABLE parts (
    job       INTEGER NOT NULL REFERENCES jobs (id),
    number    INTEGER NOT NULL,
    probe     TEXT,
    abandoned TEXT,                       -- why nothing more is expected of it
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

CREATE TABLE leases (
    job      INTEGER NOT NULL REFERENCES jobs (id),
    number   INTEGER NOT NULL,
    part     INTEGER NOT NULL,
    probe    TEXT NOT NULL,
    first    INTEGER NOT NULL,
    past     INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    expires  INTEGER NOT NULL,            -- whether it ends without a word
    granted  INTEGER NOT NULL,
    ended    INTEGER,
    how      TEXT,                        -- done, revoked, cancelled, deadline, failed, expired
    reason   TEXT,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

-- Probes that a job is not offered to again.
CREATE TABLE exclusions (
    job    INTEGER NOT NULL REFERENCES jobs (id),
    probe  TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (job, probe)
) WITHOUT ROWID;

-- One life of a probe's spool.
CREATE TABLE streams (
    key          INTEGER PRIMARY KEY,
    probe        INTEGER NOT NULL REFERENCES probes (key),
    stream       INTEGER NOT NULL,
    stored       INTEGER NOT NULL,        -- everything up to this number is here
    lost_records INTEGER NOT NULL DEFAULT 0,
    lost_bytes   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (probe, stream)
);

-- The evidence: every record as it came. Everything below is made from it and can be made again.
CREATE TABLE raw_records (
    arrival  INTEGER PRIMARY KEY,
    stream   INTEGER NOT NULL REFERENCES streams (key),
    sequence INTEGER NOT NULL,
    received INTEGER NOT NULL,
    outcome  INTEGER NOT NULL,            -- 0 counted, 1 superseded in part, 2 superseded, 3 rejected
    reason   TEXT,
    bytes    BLOB NOT NULL,
    UNIQUE (stream, sequence)
);

-- What counts of each batch: disjoint within a part.
CREATE TABLE batches (
    job         INTEGER NOT NULL,
    part        INTEGER NOT NULL,
    first       INTEGER NOT NULL,
    past        INTEGER NOT NULL,
    probe       INTEGER NOT NULL,
    lease       INTEGER NOT NULL,
    stream      INTEGER NOT NULL,
    sequence    INTEGER NOT NULL,
    started     INTEGER NOT NULL,
    took_ms     INTEGER NOT NULL,
    packets     INTEGER NOT NULL,
    duplicates  INTEGER NOT NULL,
    up          INTEGER NOT NULL,
    open        INTEGER NOT NULL,
    closed      INTEGER NOT NULL,
    filtered    INTEGER NOT NULL,
    silent      INTEGER NOT NULL,
    refused     INTEGER NOT NULL,
    not_reached INTEGER NOT NULL,
    PRIMARY KEY (job, part, first)
) WITHOUT ROWID;

-- Single answers, by rank in the natural order of the job's targets: the job's spec turns it into address and port.
CREATE TABLE observations (
    job    INTEGER NOT NULL,
    rank   INTEGER NOT NULL,
    probe  INTEGER NOT NULL,
    state  INTEGER NOT NULL,              -- 1 up, 2 open, 3 closed, 4 filtered
    reason INTEGER NOT NULL,              -- ICMP type * 256 + code for filtered, else 0
    rtt_us INTEGER NOT NULL,
    ttl    INTEGER NOT NULL,
    seen   INTEGER NOT NULL,
    PRIMARY KEY (job, rank, probe)
) WITHOUT ROWID;

-- Everything found is keyed by site and address: the same private range exists at many sites.
-- Addresses: a byte 4 or 6, then the address; so they sort by family and then by value.
CREATE TABLE hosts (
    site       TEXT NOT NULL,
    addr       BLOB NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    PRIMARY KEY (site, addr)
) WITHOUT ROWID;

-- The latest answer of each port; port -1 is the host as a whole.
CREATE TABLE ports (
    site   TEXT NOT NULL,
    addr   BLOB NOT NULL,
    port   INTEGER NOT NULL,
    state  INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    rtt_us INTEGER NOT NULL,
    ttl    INTEGER NOT NULL,
    seen   INTEGER NOT NULL,
    probe  INTEGER NOT NULL,
    job    INTEGER NOT NULL,
    PRIMARY KEY (site, addr, port)
) WITHOUT ROWID;
