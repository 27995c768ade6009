//! A console that has nothing to show yet.
use std::net::Ipv4Addr;

use dev::{console::Console, harness::SOON};
use reqwest::Url;
use serde_json::Value;

use crate::stack::repository;

pub(super) async fn console() -> Console {
    Console::start((Ipv4Addr::LOCALHOST, 0).into(), &repository().join("prometheus/rules")).await.unwrap()
}

/// What the console answers.
pub(super) async fn get(console: &Console, path: &str) -> Value {
    let url = Url::parse(&console.url()).unwrap().join(path).unwrap();
    let answer = dev::http::client(SOON).unwrap().get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.json().await.unwrap()
}
