//! What watches the service, with orders and payments to watch.
mod figures;
mod outage;
