-- The tables of the store (docs/store.md). All times are UTC. NULL is unknown.

CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
INSERT INTO meta VALUES ('schema_version', '3');

CREATE TABLE nodes (
    node VARCHAR PRIMARY KEY,
    machine_id VARCHAR NOT NULL,
    boot_id VARCHAR NOT NULL,
    agent_version VARCHAR NOT NULL,
    clock_error_seconds DOUBLE NOT NULL,
    connected_at TIMESTAMP NOT NULL,
    labels VARCHAR NOT NULL
);

CREATE TABLE streams (
    node VARCHAR,
    spool VARCHAR,
    high_water_mark BIGINT NOT NULL,
    windows BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    lost BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    last_refusal VARCHAR NOT NULL,
    refused_at TIMESTAMP,
    last_window TIMESTAMP,
    PRIMARY KEY (node, spool)
);

CREATE TABLE windows (
    node VARCHAR NOT NULL,
    spool VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    start TIMESTAMP NOT NULL,
    duration_seconds DOUBLE NOT NULL,
    received TIMESTAMP NOT NULL
);

CREATE TABLE subjects (
    kind VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    labels MAP(VARCHAR, VARCHAR) NOT NULL,
    current BOOLEAN NOT NULL
);

CREATE TABLE series (
    kind VARCHAR,
    name VARCHAR,
    unit VARCHAR NOT NULL,
    form VARCHAR NOT NULL,
    PRIMARY KEY (kind, name)
);

-- One row a subject and window; a column is added when its series is first seen. Those below are here because views name them.
CREATE TABLE fingerprint_node (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    cpu_busy_cores DOUBLE
);
CREATE TABLE fingerprint_gpu (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    utilisation_ratio DOUBLE
);
CREATE TABLE fingerprint_instance (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    requests_per_second DOUBLE,
    request_latency_count DOUBLE,
    request_latency_mean DOUBLE,
    request_latency_p50 DOUBLE,
    request_latency_p95 DOUBLE,
    request_latency_p99 DOUBLE
);
CREATE TABLE fingerprint_disk (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    disk_busy_ratio DOUBLE
);
CREATE TABLE fingerprint_interface (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    interface_up DOUBLE
);
CREATE TABLE fingerprint_model (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    predictions_per_second DOUBLE
);
CREATE TABLE fingerprint_worker (
    node VARCHAR NOT NULL, subject VARCHAR NOT NULL, seq BIGINT NOT NULL, start TIMESTAMP NOT NULL,
    memory_resident_bytes DOUBLE
);

CREATE TABLE sketches (
    kind VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    series VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    start TIMESTAMP NOT NULL,
    probability DOUBLE NOT NULL,
    sum_seconds DOUBLE NOT NULL,
    buckets USMALLINT[] NOT NULL,
    counts UINTEGER[] NOT NULL
);

CREATE TABLE events (
    node VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    occurred TIMESTAMP NOT NULL,
    value DOUBLE,
    detail VARCHAR NOT NULL,
    seq BIGINT NOT NULL
);

-- The remotes of one interval, which ended in this window: sketches of Apache DataSketches (agent/wire/talkers.py).
CREATE TABLE talkers (
    kind VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    start TIMESTAMP NOT NULL,
    seconds DOUBLE NOT NULL,
    frequent_items BLOB NOT NULL,
    hll BLOB NOT NULL
);

-- `message` is the Incident of agent/wire/query.proto, which the columns repeat for SQL.
CREATE TABLE incident_records (
    id VARCHAR PRIMARY KEY,
    status VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    since TIMESTAMP NOT NULL,
    opened TIMESTAMP NOT NULL,
    resolved TIMESTAMP,
    symptom VARCHAR NOT NULL,
    score DOUBLE,
    reopened INTEGER NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE causes (
    incident VARCHAR NOT NULL, rank INTEGER NOT NULL,
    subject VARCHAR NOT NULL, mechanism VARCHAR NOT NULL, confidence DOUBLE, summary VARCHAR NOT NULL, remedy VARCHAR NOT NULL
);
CREATE TABLE evidence (
    incident VARCHAR NOT NULL, rank INTEGER NOT NULL, position INTEGER NOT NULL,
    subject VARCHAR NOT NULL, signal VARCHAR NOT NULL, unit VARCHAR NOT NULL,
    before DOUBLE, after DOUBLE, peers DOUBLE, deviation DOUBLE, changed TIMESTAMP, event VARCHAR NOT NULL
);

-- `message` is the Decision of agent/wire/query.proto.
CREATE TABLE decision_records (
    decided TIMESTAMP NOT NULL,
    version BIGINT NOT NULL,
    mode VARCHAR NOT NULL,
    policy VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE weights (
    decided TIMESTAMP NOT NULL, version BIGINT NOT NULL,
    instance VARCHAR NOT NULL, model VARCHAR NOT NULL, wished DOUBLE, weight DOUBLE NOT NULL, reason VARCHAR NOT NULL
);

CREATE VIEW instances AS
SELECT id AS instance, node, labels['model'] AS model, labels['runtime'] AS runtime, labels['addresses'] AS addresses,
       labels['pid'] AS pid, current
FROM subjects WHERE kind = 'instance';

CREATE VIEW latency AS
SELECT f.start, f.node, f.subject AS instance, i.model, f.request_latency_count AS requests,
       f.request_latency_mean AS mean_seconds, f.request_latency_p50 AS p50_seconds,
       f.request_latency_p95 AS p95_seconds, f.request_latency_p99 AS p99_seconds
FROM fingerprint_instance f LEFT JOIN instances i ON i.instance = f.subject
WHERE f.request_latency_count IS NOT NULL;

CREATE VIEW fingerprints AS
SELECT l.start, l.kind, l.node, l.subject, l.signal, l.value
FROM (
    SELECT 'node' AS kind, * FROM (UNPIVOT fingerprint_node ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'gpu', * FROM (UNPIVOT fingerprint_gpu ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'instance', * FROM (UNPIVOT fingerprint_instance ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'disk', * FROM (UNPIVOT fingerprint_disk ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'interface', * FROM (UNPIVOT fingerprint_interface ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'model', * FROM (UNPIVOT fingerprint_model ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'worker', * FROM (UNPIVOT fingerprint_worker ON COLUMNS(* EXCLUDE (node, subject, seq, start)) INTO NAME signal VALUE value)
) l;

CREATE VIEW incidents AS
SELECT r.* EXCLUDE (message), c.mechanism, c.confidence, c.summary, c.remedy
FROM incident_records r LEFT JOIN causes c ON c.incident = r.id AND c.rank = 0;

CREATE VIEW decisions AS
SELECT d.decided, d.version, d.mode, d.policy, w.instance, w.model, w.wished, w.weight, coalesce(nullif(w.reason, ''), d.reason) AS reason
FROM decision_records d LEFT JOIN weights w ON w.decided = d.decided AND w.version = d.version;
