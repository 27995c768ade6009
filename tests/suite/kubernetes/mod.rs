//! The manifests of `deploy/kubernetes` are valid and agree with the service.
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

/// The overlay that adds a replicated database to that of production.
const REPLICATED: &str = "cloudnativepg";

/// Connections of a PostgreSQL server with default settings, without those reserved for superusers.
const CONNECTIONS_OF_A_DATABASE: u32 = 97;

fn text(path: &str) -> String {
    let path = repository().join(DIRECTORY).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files below a directory with this extension, as sorted paths from `deploy/kubernetes`.
fn files(directory: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository().join(DIRECTORY).join(directory)).unwrap() {
        let path = entry.unwrap().path();
        let name = Path::new(directory).join(path.file_name().unwrap()).to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&name, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(name);
        }
    }
    found.sort();
    found
}

/// The objects of one installation.
struct Objects(Vec<Value>);

impl Objects {
    /// Returns the objects of the base from its files.
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

    /// Returns the pods of the service and of its migration.
    fn pods(&self) -> [PodSpec; 2] {
        let service = self.deployment().spec.unwrap().template.spec.unwrap();
        [service, self.migration().spec.unwrap().template.spec.unwrap()]
    }
}

fn only_container(pod: &PodSpec) -> &Container {
    let [container] = &pod.containers[..] else { panic!("one container in a pod") };
    container
}

/// Returns the settings of an installation that are no secrets: the base's, overridden by the overlay's.
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
