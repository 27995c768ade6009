-- What the gateway said that does not fit what we have. Recovery goes on asking and is told the same again every few
-- seconds; the trail, and the person who is called, are told once. So what was told already is remembered here.
--
-- A table rather than columns of payments and refunds, because the gateway may speak of neither.
create table discrepancies (
  -- The payment or refund that the gateway speaks of, whether or not there is one.
  record_id uuid not null,
  -- Of what does not fit and of all that the gateway says about it: another amount is another discrepancy.
  digest bytea not null,
  recorded_at timestamptz not null default now(),
  primary key (record_id, digest),
  constraint digest_is_sha256 check (octet_length(digest) = 32)
);

-- No update and no delete: what was found stays found.
grant select, insert on discrepancies to app_runtime;
