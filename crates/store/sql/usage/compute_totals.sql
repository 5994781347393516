SELECT client_count AS "client_count!", request_count AS "request_count!", units AS "units!: Numeric",
    input_tokens AS "input_tokens!", output_tokens AS "output_tokens!", cached_input_tokens AS "cached_input_tokens!",
    s.cost AS "cost!: Numeric", unpriced_event_count AS "unpriced_event_count!", messages AS "messages!: Numeric",
    ai_calls AS "ai_calls!", voice_minutes AS "voice_minutes!: Numeric", b.cost AS "last_month_cost!: Numeric"
FROM (
    SELECT count(*) AS client_count, COALESCE(sum(request_count), 0)::bigint AS request_count,
        COALESCE(sum(units), 0) AS units, COALESCE(sum(input_tokens), 0)::bigint AS input_tokens,
        COALESCE(sum(output_tokens), 0)::bigint AS output_tokens,
        COALESCE(sum(cached_input_tokens), 0)::bigint AS cached_input_tokens, COALESCE(sum(cost), 0) AS cost,
        COALESCE(sum(unpriced_event_count), 0)::bigint AS unpriced_event_count, COALESCE(sum(messages), 0) AS messages,
        COALESCE(sum(ai_calls), 0)::bigint AS ai_calls, COALESCE(sum(voice_minutes), 0) AS voice_minutes
    FROM monthly_summaries WHERE month = $1 AND (request_count > 0 OR cost <> 0)
) AS s
CROSS JOIN (
    SELECT COALESCE(sum(b.cost), 0) AS cost FROM usage_months b JOIN monthly_summaries s USING (client_id)
    WHERE b.month = $2 AND s.month = $1 AND (s.request_count > 0 OR s.cost <> 0)
) AS b
