"""What the actuator did about an incident: the changes of its instances' weights, of the decisions that it stored."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.scope import utc
from trimtab.collector.store import Connection

ACTIONS_MAX = 100
_LOOK_BACK_SECONDS = 3600
"""How far before the onset the weight is looked for that the first change is one from."""
# In shadow mode the weights stay, and what they would be is in the reason.
_CHANGES = """
SELECT epoch_us(decided), mode, instance, model, wished, weight, reason FROM (
    SELECT w.*, d.mode, lag(weight, 1, 1.0) OVER turns AS before,
           d.mode = 'shadow' AND w.reason <> '' AND w.reason <> lag(w.reason, 1, '') OVER turns AS said
    FROM weights w JOIN decision_records d ON d.decided = w.decided AND d.version = w.version
    WHERE w.instance IN (SELECT unnest($instances::VARCHAR[])) AND w.decided >= $since - $back AND w.decided < $until
    WINDOW turns AS (PARTITION BY w.instance ORDER BY w.decided, w.version)
) WHERE decided >= $since AND (weight <> before OR said)
ORDER BY decided, instance LIMIT $limit
"""


def actions(
    connection: Connection, instances: Sequence[str], since_unix_ns: int, until_unix_ns: int
) -> tuple[list[pb.Action], bool]:
    """The first of them, oldest first, and whether there are more. Raises StoreError."""
    wanted = {
        "instances": list(instances),
        "since": utc(since_unix_ns),
        "until": utc(until_unix_ns),
        "back": datetime.timedelta(seconds=_LOOK_BACK_SECONDS),
        "limit": ACTIONS_MAX + 1,
    }
    found = connection.execute(_CHANGES, wanted).fetchall()
    out = [
        pb.Action(
            unix_ns=decided * 1000,
            mode=mode,
            weight=pb.Weight(
                instance=instance,
                model=model,
                wished=math.nan if wished is None else wished,
                weight=weight,
                reason=reason,
            ),
        )
        for decided, mode, instance, model, wished, weight, reason in found[:ACTIONS_MAX]
    ]
    return out, len(found) > ACTIONS_MAX
