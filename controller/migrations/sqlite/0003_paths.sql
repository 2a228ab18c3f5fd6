-- Paths that were traced: one for each destination of a job and probe, which together are the history of a vantage.
CREATE TABLE paths (
    job   INTEGER NOT NULL,
    rank  INTEGER NOT NULL,
    probe INTEGER NOT NULL,
    site  TEXT NOT NULL,
    addr  BLOB NOT NULL,                  -- the destination: a byte 4 or 6, then the address
    flow  TEXT NOT NULL,                  -- what packets looked like to routers, in words
    began INTEGER NOT NULL,
    seen  INTEGER NOT NULL,               -- when it was over
    trace BLOB NOT NULL,                  -- how it was asked, where from, and the path as it came, encoded
    PRIMARY KEY (job, rank, probe)
) WITHOUT ROWID;
CREATE INDEX paths_by_destination ON paths (addr, probe, flow, site, seen);

-- Ways that somebody has accepted: what later paths are compared with. No projection: a rebuild leaves them.
CREATE TABLE path_baselines (
    site     TEXT NOT NULL,                -- a probe that moves finds other machines at the same addresses
    addr     BLOB NOT NULL,
    probe    INTEGER NOT NULL,
    flow     TEXT NOT NULL,
    way      BLOB NOT NULL,               -- routers by distance, and the destination's distances, encoded
    accepted INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    PRIMARY KEY (site, addr, probe, flow)
) WITHOUT ROWID;
