//! The manifests of `deploy/kubernetes` are valid, and agree with the service and with `prometheus/alertmanager.yml`.
//! The scripts in that directory work.
mod files;
mod rendered;
mod schema;

use std::{collections::BTreeMap, fs, path::Path};

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{Container, PodSpec, Service},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::schema::{documents, typed};
use crate::stack::repository;

const DIRECTORY: &str = "deploy/kubernetes";
const OVERLAYS: [&str; 2] = ["staging", "production"];

/// The overlay that extends the production overlay with a replicated database.
const REPLICATED: &str = "cloudnativepg";

/// Number of connections that a PostgreSQL server with default settings accepts from roles that are no superusers:
/// `max_connections` (100) minus `superuser_reserved_connections` (3).
const DEFAULT_CONNECTION_LIMIT: u32 = 97;

fn text(path: &str) -> String {
    let path = repository().join(DIRECTORY).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the sorted paths of the files with this extension in a directory and its subdirectories. The directory and
/// the paths are relative to `deploy/kubernetes`.
fn files(directory: &str, extension: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(repository().join(DIRECTORY).join(directory)).unwrap() {
        let path = entry.unwrap().path();
        let name = Path::new(directory).join(path.file_name().unwrap()).to_str().unwrap().to_owned();
        if path.is_dir() {
            paths.extend(files(&name, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            paths.push(name);
        }
    }
    paths.sort();
    paths
}

/// The Kubernetes objects of the base or of an overlay.
struct Objects(Vec<Value>);

impl Objects {
    /// Returns the objects of the base, read from its files without Kustomize.
    fn of_the_base() -> Self {
        let manifests =
            files("base", "yaml").into_iter().filter(|file| !file.ends_with("kustomization.yaml"));
        Self(manifests.flat_map(|file| documents(&text(&file))).collect())
    }

    fn of_kind(&self, kind: &str) -> Vec<&Value> {
        let found: Vec<_> = self.0.iter().filter(|object| object["kind"] == kind).collect();
        assert!(!found.is_empty(), "there is no {kind}");
        found
    }

    fn named<T: DeserializeOwned + serde::Serialize>(&self, kind: &str, name: &str) -> T {
        let object = self.of_kind(kind).into_iter().find(|object| object["metadata"]["name"] == name);
        typed(object.unwrap_or_else(|| panic!("there is no {kind} {name}")))
    }

    fn deployment(&self) -> Deployment {
        self.named("Deployment", "service")
    }

    fn migration(&self) -> Job {
        self.named("Job", "migrate")
    }

    fn autoscaler(&self) -> HorizontalPodAutoscaler {
        self.named("HorizontalPodAutoscaler", "service")
    }

    fn service(&self, name: &str) -> Service {
        self.named("Service", name)
    }

    /// Returns the pod specifications of the service and of its migration, in this order.
    fn pods(&self) -> [PodSpec; 2] {
        let service = self.deployment().spec.unwrap().template.spec.unwrap();
        [service, self.migration().spec.unwrap().template.spec.unwrap()]
    }
}

fn only_container(pod: &PodSpec) -> &Container {
    let [container] = &pod.containers[..] else { panic!("the pod does not have exactly one container") };
    container
}

/// Returns the non-secret settings of an overlay: those of the base, and those of the overlay, which take precedence.
fn settings(overlay: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for file in ["base/settings.env".to_owned(), format!("overlays/{overlay}/settings.env")] {
        for line in text(&file).lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}"));
            settings.insert(name.to_owned(), value.to_owned());
        }
    }
    settings
}
