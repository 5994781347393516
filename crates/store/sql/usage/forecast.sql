-- What the forecast of a client's current month needs: the cost of each day from $2 to $3, and the part of the services $4, which
-- recur; the alert policies that apply to the client; and its time zone. One statement, so that all are of one snapshot.
SELECT NULL::timestamptz AS "now?", NULL::text AS "time_zone?", NULL::text AS "policy_of?", NULL::text AS "policy?", day AS "day?",
    COALESCE(sum(cost) FILTER (WHERE service <> ALL ($4)), 0) AS "varying!: Numeric",
    COALESCE(sum(cost) FILTER (WHERE service = ANY ($4)), 0) AS "recurring!: Numeric",
    bool_or(service <> ALL ($4)) AS "has_usage!"
FROM all_usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND (request_count > 0 OR cost <> 0)
GROUP BY day
UNION ALL
SELECT NULL, NULL, client_id, policy::text, NULL, 0, 0, false FROM alert_policies WHERE client_id IN ('', $1)
UNION ALL
SELECT now(), time_zone, NULL, NULL, NULL, 0, 0, EXISTS (
    SELECT FROM all_usage_days
    WHERE client_id = $1 AND day < $2 AND service <> ALL ($4) AND (request_count > 0 OR cost <> 0)
)
FROM clients WHERE client_id = $1
