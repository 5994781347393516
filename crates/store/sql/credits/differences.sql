WITH uses AS (
    SELECT client_id, grant_id, month, amount FROM credit_uses
    WHERE ($1::text IS NULL OR client_id = $1) AND ($2::text IS NULL OR client_id > $2)
      AND ($3::text IS NULL OR client_id <= $3)
), grants AS (
    SELECT client_id, grant_id, amount, used FROM credit_grants
    WHERE ($1::text IS NULL OR client_id = $1) AND ($2::text IS NULL OR client_id > $2)
      AND ($3::text IS NULL OR client_id <= $3)
), of_grants AS (
    SELECT client_id, grant_id, sum(amount) AS amount FROM uses GROUP BY client_id, grant_id
), of_months AS (
    SELECT client_id, month, sum(amount) AS amount FROM uses GROUP BY client_id, month
)
SELECT format('%s credits, grant %s: used is %s, but the sum of its months is %s', to_json(client_id), grant_id,
              trim_scale(COALESCE(g.used, 0)), trim_scale(COALESCE(u.amount, 0))) AS "line!"
FROM grants g FULL JOIN of_grants u USING (client_id, grant_id)
WHERE COALESCE(g.used, 0) <> COALESCE(u.amount, 0)
UNION ALL
SELECT format('%s credits, grant %s: used is %s of %s', to_json(client_id), grant_id, trim_scale(used), trim_scale(amount))
FROM grants WHERE used < 0 OR used > amount
UNION ALL
SELECT format('%s %s, credits: grants have paid %s, but the cost is %s', to_json(u.client_id), to_char(u.month, 'YYYY-MM'),
              trim_scale(u.amount), trim_scale(COALESCE(m.cost, 0)))
FROM of_months u LEFT JOIN usage_months m USING (client_id, month)
WHERE u.amount > COALESCE(m.cost, 0)
