-- Rules that find the model of a price for a name that a provider or a proxy uses, such as gpt-4o for openai/gpt-4o-2024-11-20.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without the rules end first

CREATE TABLE model_name_rules (
    -- 1: provider, a prefix; 2: region, a prefix; 3: latest, 4: version, 5: date: suffixes.
    part     smallint NOT NULL CHECK (part BETWEEN 1 AND 5),
    -- In lower case. '#' is any digit.
    pattern  text COLLATE "C" NOT NULL CHECK (pattern <> ''),
    -- The rule is only for names that begin like this after the prefix. '' is any.
    models   text COLLATE "C" NOT NULL DEFAULT '',
    PRIMARY KEY (part, pattern, models)
);

-- Only the authors of models. Others, such as Azure, sell some of the same models at other prices.
INSERT INTO model_name_rules (part, pattern)
SELECT 1, author || '/' FROM unnest(ARRAY['openai', 'anthropic', 'google', 'gemini', 'models', 'mistral', 'mistralai',
    'deepseek', 'deepseek-ai', 'cohere', 'xai', 'x-ai', 'amazon', 'meta-llama', 'perplexity']) AS author;

-- Only models that cost the same in these regions. Amazon charges other rates for the newer ones.
INSERT INTO model_name_rules (part, pattern, models)
SELECT 2, region, models
FROM unnest(ARRAY['us.', 'eu.', 'apac.', 'global.']) AS region,
     unnest(ARRAY['anthropic.claude-3', 'anthropic.claude-sonnet-4-2025', 'anthropic.claude-opus-4-2025',
         'anthropic.claude-opus-4-1-2025', 'meta.llama3-1', 'meta.llama3-3', 'meta.llama4', 'mistral.pixtral',
         'deepseek.r1']) AS models;

INSERT INTO model_name_rules (part, pattern) VALUES
    (3, '-latest'), (3, '@latest'), (3, ':latest'), (3, '@default'),
    (4, '-v#:#'), (4, '-v#'), (4, ':#'),
    (5, '-20##-##-##'), (5, '-20######'), (5, '@20######');

-- This version of gpt-4o costs more than the others, so the rules must not find it. What an operator chose for it stays.
INSERT INTO prices (service, operation, model, effective_time, input_token, output_token, built_in)
SELECT 'openai', '', 'gpt-4o-2024-05-13', '-infinity', 0.000005, 0.000015, true
FROM prices
WHERE service = 'openai' AND operation = '' AND model = 'gpt-4o' AND effective_time = '-infinity' AND built_in
  AND NOT EXISTS (SELECT FROM prices own WHERE own.service = 'openai' AND own.model = 'gpt-4o-2024-05-13')
  AND NOT EXISTS (SELECT FROM model_aliases WHERE service = 'openai' AND alias = 'gpt-4o-2024-05-13')
ON CONFLICT DO NOTHING;

UPDATE catalog_version SET version = version + 1;
-- Events without a price that the rules find one for are priced.
INSERT INTO pricing_tasks (service) SELECT DISTINCT service FROM prices WHERE model <> '';
