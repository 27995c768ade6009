-- Products that can be ordered, with their current prices. An order keeps the price at which it was placed, so a price
-- change here changes no order.
create table products (
  -- UUIDv7: sorts by creation, which is also the order of the list.
  id uuid primary key,
  sku text not null,
  name text not null,
  -- Minor units (cents). The bound keeps every total of an order (100 lines of 1000 pieces) below 2^53. Above that,
  -- many JSON readers lose precision. Totals cannot overflow.
  unit_amount bigint not null,
  -- ISO 4217.
  currency text not null,
  active boolean not null default true,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint sku_is_taken_once unique (sku),
  constraint unit_amount_is_in_bounds check (unit_amount between 1 and 10000000000),
  constraint currency_is_iso_4217 check (currency ~ '^[A-Z]{3}$')
);

grant select, insert on products to app_runtime;
grant update (name, unit_amount, active, updated_at) on products to app_runtime;
