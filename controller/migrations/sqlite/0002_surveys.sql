-- Services, hosts seen on the link, late answers; ports of several transport protocols.

-- Who sent the ICMP error, where that was not the target: a byte 4 or 6, then the address.
ALTER TABLE observations ADD COLUMN origin BLOB;
-- Ports that are reachable, open or not.
ALTER TABLE batches ADD COLUMN unfiltered INTEGER NOT NULL DEFAULT 0;

-- The latest answer of each port; port -1 and transport 0 are the host as a whole. Transport: the protocol's number (6 TCP, 17 UDP,
-- 132 SCTP). Until now there were TCP ports only.
CREATE TABLE ports_by_transport (
    site      TEXT NOT NULL,
    addr      BLOB NOT NULL,
    port      INTEGER NOT NULL,
    transport INTEGER NOT NULL,
    state     INTEGER NOT NULL,           -- 1 up, 2 open, 3 closed, 4 filtered, 5 unfiltered
    reason    INTEGER NOT NULL,           -- up: what was answered; filtered: ICMP type * 256 + code; else 0
    origin    BLOB,
    rtt_us    INTEGER NOT NULL,
    ttl       INTEGER NOT NULL,
    seen      INTEGER NOT NULL,
    probe     INTEGER NOT NULL,
    job       INTEGER NOT NULL,
    PRIMARY KEY (site, addr, port, transport)
) WITHOUT ROWID;
INSERT INTO ports_by_transport (site, addr, port, transport, state, reason, rtt_us, ttl, seen, probe, job)
    SELECT site, addr, port, CASE WHEN port < 0 THEN 0 ELSE 6 END, state, reason, rtt_us, ttl, seen, probe, job FROM ports;
DROP TABLE ports;
ALTER TABLE ports_by_transport RENAME TO ports;

-- What serves on each port, as it was asked last. The outcome as it came, encoded; its protocol's name beside it.
CREATE TABLE services (
    site      TEXT NOT NULL,
    addr      BLOB NOT NULL,
    port      INTEGER NOT NULL,
    transport INTEGER NOT NULL,
    name      TEXT,
    outcome   BLOB NOT NULL,
    seen      INTEGER NOT NULL,
    probe     INTEGER NOT NULL,
    job       INTEGER NOT NULL,
    PRIMARY KEY (site, addr, port, transport)
) WITHOUT ROWID;

-- The same within a job, by rank.
CREATE TABLE job_services (
    job     INTEGER NOT NULL,
    rank    INTEGER NOT NULL,
    probe   INTEGER NOT NULL,
    outcome BLOB NOT NULL,
    seen    INTEGER NOT NULL,
    PRIMARY KEY (job, rank, probe)
) WITHOUT ROWID;

-- Hosts seen on the links of probes.
CREATE TABLE link_hosts (
    site       TEXT NOT NULL,
    addr       BLOB NOT NULL,
    mac        BLOB,
    how        TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    probe      INTEGER NOT NULL,
    job        INTEGER NOT NULL,
    PRIMARY KEY (site, addr)
) WITHOUT ROWID;

-- The same within a job.
CREATE TABLE job_hosts (
    job   INTEGER NOT NULL,
    addr  BLOB NOT NULL,
    probe INTEGER NOT NULL,
    mac   BLOB,
    how   TEXT NOT NULL,
    seen  INTEGER NOT NULL,
    PRIMARY KEY (job, addr, probe)
) WITHOUT ROWID;
