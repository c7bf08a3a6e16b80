-- The tables of the store (docs/store.md). All times are UTC. NULL is unknown.
--
-- No keys, no indexes, no sequences: the same statements make the same tables in DuckLake. What must be unique is kept so by the one writer.

CREATE TABLE meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL);
INSERT INTO meta VALUES ('schema_version', '6'), ('swept', '0');

CREATE TABLE nodes (
    node VARCHAR NOT NULL,
    machine_id VARCHAR NOT NULL,
    boot_id VARCHAR NOT NULL,
    agent_version VARCHAR NOT NULL,
    clock_error_seconds DOUBLE NOT NULL,
    connected_at TIMESTAMP NOT NULL,
    labels VARCHAR NOT NULL
);

-- What is known of each spool, as of `high_water_mark`; the windows beyond it are in `arrivals`, and the view `streams` adds them.
CREATE TABLE stream_records (
    stream INTEGER NOT NULL,
    node VARCHAR NOT NULL,
    spool VARCHAR NOT NULL,
    high_water_mark BIGINT NOT NULL,
    windows BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    lost BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    last_refusal VARCHAR NOT NULL,
    refused_at TIMESTAMP,
    last_window TIMESTAMP
);

-- One row a window: what makes the store exactly-once.
CREATE TABLE arrivals (
    stream INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    start TIMESTAMP NOT NULL,
    duration_seconds DOUBLE NOT NULL,
    received TIMESTAMP NOT NULL
);

CREATE TABLE subjects (
    subject INTEGER NOT NULL,
    kind VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    labels MAP(VARCHAR, VARCHAR) NOT NULL,
    current BOOLEAN NOT NULL
);

CREATE TABLE series (
    kind VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    unit VARCHAR NOT NULL,
    form VARCHAR NOT NULL
);

-- The view `samples_KIND` is these two tables together: while one is written to the file, windows go on into the other (collector/store.py).
-- One row a subject and window, a column a series, added when it is first seen; a distribution has its sketch (collector/packed.py) and
-- five numbers of it. `_1m` and `_1h` are the same over a minute and an hour: `windows` says of how many, and a gauge or rate has
-- five columns, of which NAME_known says in how many windows it was known. The columns below are here because views name them.
CREATE TABLE samples_node_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    cpu_busy_cores DOUBLE
);
CREATE TABLE samples_node_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    cpu_busy_cores DOUBLE
);
CREATE TABLE samples_node_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    cpu_busy_cores_known INTEGER, cpu_busy_cores_min DOUBLE, cpu_busy_cores_mean DOUBLE, cpu_busy_cores_max DOUBLE, cpu_busy_cores_last DOUBLE
);
CREATE TABLE samples_node_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    cpu_busy_cores_known INTEGER, cpu_busy_cores_min DOUBLE, cpu_busy_cores_mean DOUBLE, cpu_busy_cores_max DOUBLE, cpu_busy_cores_last DOUBLE
);
CREATE TABLE samples_gpu_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    utilisation_ratio DOUBLE
);
CREATE TABLE samples_gpu_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    utilisation_ratio DOUBLE
);
CREATE TABLE samples_gpu_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    utilisation_ratio_known INTEGER, utilisation_ratio_min DOUBLE, utilisation_ratio_mean DOUBLE, utilisation_ratio_max DOUBLE, utilisation_ratio_last DOUBLE
);
CREATE TABLE samples_gpu_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    utilisation_ratio_known INTEGER, utilisation_ratio_min DOUBLE, utilisation_ratio_mean DOUBLE, utilisation_ratio_max DOUBLE, utilisation_ratio_last DOUBLE
);
CREATE TABLE samples_instance_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    requests_per_second DOUBLE,
    request_latency_sketch BLOB, request_latency_count DOUBLE, request_latency_mean DOUBLE, request_latency_p50 DOUBLE, request_latency_p95 DOUBLE, request_latency_p99 DOUBLE
);
CREATE TABLE samples_instance_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    requests_per_second DOUBLE,
    request_latency_sketch BLOB, request_latency_count DOUBLE, request_latency_mean DOUBLE, request_latency_p50 DOUBLE, request_latency_p95 DOUBLE, request_latency_p99 DOUBLE
);
CREATE TABLE samples_instance_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    requests_per_second_known INTEGER, requests_per_second_min DOUBLE, requests_per_second_mean DOUBLE, requests_per_second_max DOUBLE, requests_per_second_last DOUBLE,
    request_latency_sketch BLOB, request_latency_count DOUBLE, request_latency_mean DOUBLE, request_latency_p50 DOUBLE, request_latency_p95 DOUBLE, request_latency_p99 DOUBLE
);
CREATE TABLE samples_instance_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    requests_per_second_known INTEGER, requests_per_second_min DOUBLE, requests_per_second_mean DOUBLE, requests_per_second_max DOUBLE, requests_per_second_last DOUBLE,
    request_latency_sketch BLOB, request_latency_count DOUBLE, request_latency_mean DOUBLE, request_latency_p50 DOUBLE, request_latency_p95 DOUBLE, request_latency_p99 DOUBLE
);
CREATE TABLE samples_disk_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    disk_busy_ratio DOUBLE
);
CREATE TABLE samples_disk_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    disk_busy_ratio DOUBLE
);
CREATE TABLE samples_disk_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    disk_busy_ratio_known INTEGER, disk_busy_ratio_min DOUBLE, disk_busy_ratio_mean DOUBLE, disk_busy_ratio_max DOUBLE, disk_busy_ratio_last DOUBLE
);
CREATE TABLE samples_disk_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    disk_busy_ratio_known INTEGER, disk_busy_ratio_min DOUBLE, disk_busy_ratio_mean DOUBLE, disk_busy_ratio_max DOUBLE, disk_busy_ratio_last DOUBLE
);
CREATE TABLE samples_interface_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    interface_up DOUBLE
);
CREATE TABLE samples_interface_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    interface_up DOUBLE
);
CREATE TABLE samples_interface_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    interface_up_known INTEGER, interface_up_min DOUBLE, interface_up_mean DOUBLE, interface_up_max DOUBLE, interface_up_last DOUBLE
);
CREATE TABLE samples_interface_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    interface_up_known INTEGER, interface_up_min DOUBLE, interface_up_mean DOUBLE, interface_up_max DOUBLE, interface_up_last DOUBLE
);
CREATE TABLE samples_model_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    predictions_per_second DOUBLE
);
CREATE TABLE samples_model_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    predictions_per_second DOUBLE
);
CREATE TABLE samples_model_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    predictions_per_second_known INTEGER, predictions_per_second_min DOUBLE, predictions_per_second_mean DOUBLE, predictions_per_second_max DOUBLE, predictions_per_second_last DOUBLE
);
CREATE TABLE samples_model_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    predictions_per_second_known INTEGER, predictions_per_second_min DOUBLE, predictions_per_second_mean DOUBLE, predictions_per_second_max DOUBLE, predictions_per_second_last DOUBLE
);
CREATE TABLE samples_worker_0 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    memory_resident_bytes DOUBLE
);
CREATE TABLE samples_worker_1 (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL,
    memory_resident_bytes DOUBLE
);
CREATE TABLE samples_worker_1m (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    memory_resident_bytes_known INTEGER, memory_resident_bytes_min DOUBLE, memory_resident_bytes_mean DOUBLE, memory_resident_bytes_max DOUBLE, memory_resident_bytes_last DOUBLE
);
CREATE TABLE samples_worker_1h (
    subject INTEGER NOT NULL, start TIMESTAMP NOT NULL, windows INTEGER NOT NULL,
    memory_resident_bytes_known INTEGER, memory_resident_bytes_min DOUBLE, memory_resident_bytes_mean DOUBLE, memory_resident_bytes_max DOUBLE, memory_resident_bytes_last DOUBLE
);

-- Minutes that got windows after they were rolled up: to be rolled up again.
CREATE TABLE late_minutes (start TIMESTAMP NOT NULL);

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
    subject INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    start TIMESTAMP NOT NULL,
    seconds DOUBLE NOT NULL,
    frequent_items BLOB NOT NULL,
    hll BLOB NOT NULL
);

-- `message` is the Incident of agent/wire/query.proto, which the columns repeat for SQL.
CREATE TABLE incident_records (
    id VARCHAR NOT NULL,
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

-- What operators said of incidents (collector/remarks.py). `target` is an incident or a subject; ends by itself.
CREATE TABLE acknowledgements (incident VARCHAR NOT NULL, acknowledged TIMESTAMP NOT NULL, who VARCHAR NOT NULL, note VARCHAR NOT NULL);
CREATE TABLE silences (
    target VARCHAR NOT NULL, since TIMESTAMP NOT NULL, until TIMESTAMP NOT NULL, who VARCHAR NOT NULL, reason VARCHAR NOT NULL
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

-- What the policies saw: the Seen of agent/wire/query.proto. Kept as long as windows are, and not there for each decision of a large fleet.
CREATE TABLE decision_states (decided TIMESTAMP NOT NULL, version BIGINT NOT NULL, seen BLOB NOT NULL);

-- Weights that people set (collector/overrides.py). `target` is an instance, "model NAME", or empty for all; `until` is NULL where it
-- lasts until it is taken back. `message` is the Override of agent/wire/query.proto.
CREATE TABLE overrides (
    target VARCHAR NOT NULL, kind VARCHAR NOT NULL, weight DOUBLE, since TIMESTAMP NOT NULL, until TIMESTAMP, who VARCHAR NOT NULL,
    reason VARCHAR NOT NULL, message BLOB NOT NULL
);

-- Views.

CREATE VIEW streams AS
SELECT r.node, r.spool, greatest(r.high_water_mark, coalesce(a.seq, 0)) AS high_water_mark, r.windows + coalesce(a.windows, 0) AS windows,
       r.duplicates, r.lost, r.refused, r.last_refusal, r.refused_at, greatest(r.last_window, a.start) AS last_window
FROM stream_records r LEFT JOIN (
    SELECT a.stream, max(a.seq) AS seq, count(*) AS windows, max(a.start) AS start
    FROM arrivals a JOIN stream_records s ON s.stream = a.stream AND a.seq > s.high_water_mark GROUP BY a.stream
) a USING (stream);

CREATE VIEW windows AS
SELECT r.node, r.spool, a.seq, a.start, a.duration_seconds, a.received FROM arrivals a JOIN stream_records r USING (stream);

CREATE VIEW instances AS
SELECT subject, id AS instance, node, labels['model'] AS model, labels['runtime'] AS runtime, labels['addresses'] AS addresses,
       labels['pid'] AS pid, current
FROM subjects WHERE kind = 'instance';

CREATE VIEW latency AS
SELECT f.start, s.node, s.id AS instance, s.labels['model'] AS model, f.request_latency_count AS requests,
       f.request_latency_mean AS mean_seconds, f.request_latency_p50 AS p50_seconds,
       f.request_latency_p95 AS p95_seconds, f.request_latency_p99 AS p99_seconds
FROM samples_instance f JOIN subjects s USING (subject)
WHERE f.request_latency_count IS NOT NULL;

CREATE VIEW fingerprints AS
SELECT l.start, l.kind, s.node, s.id AS subject, l.signal, l.value
FROM (
    SELECT 'node' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_node)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'gpu' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_gpu)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'instance' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_instance)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'disk' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_disk)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'interface' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_interface)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'model' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_model)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
    UNION ALL
    SELECT 'worker' AS kind, * FROM (UNPIVOT (SELECT COLUMNS(c -> NOT suffix(c, '_sketch')) FROM samples_worker)
        ON COLUMNS(* EXCLUDE (subject, start)) INTO NAME signal VALUE value)
) l JOIN subjects s USING (subject);

CREATE VIEW incidents AS
SELECT r.* EXCLUDE (message), c.mechanism, c.confidence, c.summary, c.remedy
FROM incident_records r LEFT JOIN causes c ON c.incident = r.id AND c.rank = 0;

CREATE VIEW decisions AS
SELECT d.decided, d.version, d.mode, d.policy, w.instance, w.model, w.wished, w.weight, coalesce(nullif(w.reason, ''), d.reason) AS reason
FROM decision_records d LEFT JOIN weights w ON w.decided = d.decided AND w.version = d.version;
