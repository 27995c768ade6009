-- Orders: their items, prices and payment status.
create table orders (
  -- UUIDv7: sorts by creation, which is also the order of the lists.
  id uuid primary key,
  customer_id uuid not null references users (id),
  status text not null default 'pending_payment',
  currency text not null,
  total_amount bigint not null,
  -- The payment that is in progress or has succeeded. Null after a decline, and in a cancelled order.
  --
  -- Paying and cancelling race. A guard that reads the payments table would use an old snapshot. Both guards therefore
  -- use this column, and the second statement sees its change. The migration of payments adds the foreign key.
  live_payment_id uuid,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Referenced by the foreign key that keeps a payment's amount and currency equal to its order's.
  constraint payments_agree_with_this unique (id, total_amount, currency),
  constraint order_status_is_known check (
    status in ('pending_payment', 'paid', 'cancelled', 'partially_refunded', 'refunded')
  ),
  constraint total_amount_is_positive check (total_amount > 0),
  constraint order_currency_is_iso_4217 check (currency ~ '^[A-Z]{3}$'),
  constraint a_cancelled_order_has_no_live_payment check (status <> 'cancelled' or live_payment_id is null),
  constraint a_paid_order_has_its_payment check (
    status in ('pending_payment', 'cancelled') or live_payment_id is not null
  )
);

create index orders_of_customer on orders (customer_id, id desc);
create index orders_by_status on orders (status, id desc);

create table order_items (
  order_id uuid not null references orders (id),
  line_number integer not null,
  product_id uuid not null references products (id),
  -- Name and price at the time of the order.
  name text not null,
  unit_amount bigint not null,
  quantity integer not null,
  amount bigint not null,
  primary key (order_id, line_number),
  constraint line_number_is_in_bounds check (line_number between 1 and 100),
  constraint quantity_is_in_bounds check (quantity between 1 and 1000),
  constraint item_unit_amount_is_positive check (unit_amount > 0),
  constraint amount_is_price_times_quantity check (amount = unit_amount * quantity)
);

-- An order in a final status keeps it, and no status moves backward.
create function check_order_status() returns trigger
language plpgsql
set search_path = public, pg_temp
as $$
begin
  if (old.status, new.status) in (
    ('pending_payment', 'paid'),
    ('pending_payment', 'cancelled'),
    ('paid', 'partially_refunded'),
    ('paid', 'refunded'),
    ('partially_refunded', 'refunded')
  ) then
    return new;
  end if;
  raise exception 'an order cannot change from % to %', old.status, new.status
    using errcode = 'check_violation', constraint = 'order_status_moves_forward';
end
$$;

create trigger order_status_moves_forward
  before update of status on orders
  for each row when (old.status <> new.status)
  execute function check_order_status();

-- The one rule that a column constraint cannot express. Deferred, because an order is inserted before its items.
create function check_order_total() returns trigger
language plpgsql
set search_path = public, pg_temp
as $$
begin
  if new.total_amount <> (select coalesce(sum(amount), 0) from order_items where order_id = new.id) then
    raise exception 'the total of order % is not the sum of its items', new.id
      using errcode = 'check_violation', constraint = 'total_amount_is_the_sum_of_the_items';
  end if;
  return null;
end
$$;

create constraint trigger total_amount_is_the_sum_of_the_items
  after insert on orders
  deferrable initially deferred
  for each row execute function check_order_total();

-- Orders as the API returns them.
create view orders_with_items with (security_invoker = true) as
select
  orders.id, orders.customer_id, orders.status, orders.currency, orders.total_amount, orders.live_payment_id,
  orders.created_at, orders.updated_at,
  (
    select json_agg(
      json_build_object(
        'product_id', product_id, 'name', name, 'unit_amount', unit_amount, 'quantity', quantity, 'amount', amount
      )
      order by line_number
    )
    from order_items
    where order_id = orders.id
  ) as items
from orders;

-- Functions that the statements of payments call to change an order. Each runs under a lock on the order. That lock is
-- always taken before the locks on the payment and the refund, so that these statements cannot deadlock.
create function lock_order(order_id uuid) returns boolean
language plpgsql
set search_path = public, pg_temp
as $$
begin
  perform from orders where id = $1 for update;
  return found;
end
$$;

-- Locks an order that can be paid: unpaid, not cancelled, and without a payment in progress.
create function lock_payable_order(order_id uuid) returns boolean
language plpgsql
set search_path = public, pg_temp
as $$
begin
  perform from orders where id = $1 and status = 'pending_payment' and live_payment_id is null for update;
  return found;
end
$$;

-- Returns whether an order belongs to a customer, for callers who may read only their own orders.
create function order_belongs_to(order_id uuid, customer_id uuid) returns boolean
language plpgsql
stable
set search_path = public, pg_temp
as $$
begin
  return exists (select from orders where id = $1 and orders.customer_id = $2);
end
$$;

create function begin_order_payment(order_id uuid, payment_id uuid) returns void
language plpgsql
set search_path = public, pg_temp
as $$
begin
  update orders set live_payment_id = $2, updated_at = now() where id = $1;
end
$$;

-- `new_status` is null when a payment ended without taking money. The order can then be paid again.
create function settle_order(order_id uuid, new_status text) returns void
language plpgsql
set search_path = public, pg_temp
as $$
begin
  update orders
  set
    status = coalesce($2, status),
    live_payment_id = case when $2 is not null then live_payment_id end,
    updated_at = now()
  where id = $1;
end
$$;

-- Neither amounts can be updated nor rows deleted: the ordered items stay unchanged.
grant select, insert on orders to app_runtime;
grant update (status, live_payment_id, updated_at) on orders to app_runtime;
grant select, insert on order_items to app_runtime;
grant select on orders_with_items to app_runtime;
grant execute on function
  lock_order(uuid), lock_payable_order(uuid), order_belongs_to(uuid, uuid), begin_order_payment(uuid, uuid),
  settle_order(uuid, text)
to app_runtime;
