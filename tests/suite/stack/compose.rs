//! The containers of the stack: their images, their health checks, their logs, and the nightly job that starts them.
use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::repository;

/// Pairs of an image and a program that its health check may call by name. Every other health check calls its program
/// by an absolute path.
const HEALTH_CHECK_PROGRAMS: [(&str, &str); 3] =
    [("postgres", "pg_isready"), ("jaegertracing/jaeger", "wget"), ("grafana/grafana", "wget")];

fn read(path: &str) -> Value {
    yaml_serde::from_str(&fs::read_to_string(repository().join(path)).unwrap()).unwrap()
}

/// Returns the containers of the stack by name.
fn containers() -> Vec<(String, Value)> {
    let services = |path| read(path)["services"].as_object().unwrap().clone();
    services("docker-compose.yml").into_iter().chain(services("deploy/dependencies.yml")).collect()
}

/// Returns a field of a container, or of a YAML mapping that the container merges with `<<`.
fn field(container: &Value, name: &str) -> Value {
    let merged = match &container["<<"] {
        Value::Array(parts) => parts.clone(),
        part => vec![part.clone()],
    };
    let all = [container.clone()].into_iter().chain(merged);
    all.map(|part| part[name].clone()).find(|value| !value.is_null()).unwrap_or_default()
}

fn is_pinned(image: &str) -> bool {
    image.split_once("@sha256:").is_some_and(|(_, digest)| digest.len() == 64)
}

#[test]
fn every_image_that_is_not_built_here_has_a_digest() {
    let mut pinned = 0;
    for (name, container) in containers() {
        if field(&container, "build").is_null() {
            let image = field(&container, "image");
            assert!(is_pinned(image.as_str().unwrap()), "{name}: {image}");
            pinned += 1;
        }
    }
    assert!(pinned >= 8, "{pinned}");
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let bases: Vec<_> = dockerfile.lines().filter(|line| line.contains("_IMAGE=")).collect();
    assert_eq!(bases.len(), 3);
    assert!(bases.iter().all(|base| is_pinned(base)), "{bases:?}");
}

#[test]
fn health_checks_call_programs_that_the_image_has() {
    let mut checks = 0;
    for (name, container) in containers() {
        let check = field(&container, "healthcheck");
        let Some(command) = check["test"].as_array() else { continue };
        assert_eq!(
            command[0], "CMD",
            "{name}: the health check must use CMD, because CMD-SHELL needs a shell in the image"
        );
        let (program, image) = (command[1].as_str().unwrap(), field(&container, "image"));
        let is_in_image = |(of, known): &(&str, &str)| {
            *known == program && image.as_str().unwrap().starts_with(&format!("{of}:"))
        };
        assert!(
            program.starts_with('/') || HEALTH_CHECK_PROGRAMS.iter().any(is_in_image),
            "{name}: {program}"
        );
        checks += 1;
    }
    assert!(checks >= 6, "{checks}");
}

#[test]
fn no_container_fills_the_disk_or_delays_the_service_with_logs() {
    let mut through_collector = BTreeSet::new();
    for (name, container) in containers() {
        let logging = field(&container, "logging");
        let options = &logging["options"];
        if logging["driver"] == "fluentd" {
            assert_eq!(
                options["fluentd-async"], "true",
                "{name}: without fluentd-async, the loss of the collector stops the container"
            );
            assert_eq!(
                options["fluentd-sub-second-precision"], "true",
                "{name}: without sub-second times, lines lose their order"
            );
            assert!(options["fluentd-buffer-limit"].is_string(), "{name}");
            through_collector.insert(name);
        } else if field(&container, "restart") == "unless-stopped" {
            assert!(options["max-size"].is_string() && options["max-file"].is_string(), "{name}");
        }
    }
    assert!(through_collector.contains("service"), "{through_collector:?}");
    // Compose stops a container before its dependencies, so a service that depends on the collector stops first.
    let service = &read("docker-compose.yml")["services"]["service"];
    assert!(
        service["depends_on"]["collector"].is_object(),
        "the service must depend on the collector, which receives the last lines of the service"
    );
}

#[test]
fn the_nightly_job_waits_for_every_prometheus_target() {
    let scraped = read("prometheus/prometheus.yml");
    let targets: usize = scraped["scrape_configs"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|job| job["static_configs"].as_array().unwrap())
        .map(|group| group["targets"].as_array().unwrap().len())
        .sum();
    let steps = read(".github/workflows/nightly.yml")["jobs"]["stack"]["steps"].clone();
    let scripts: String = steps.as_array().unwrap().iter().filter_map(|step| step["run"].as_str()).collect();
    assert!(scripts.contains("docker compose up"), "{scripts}");
    assert!(scripts.contains(&format!("count(up == 1) == {targets}'")), "{targets} targets: {scripts}");
}
