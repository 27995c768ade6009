//! Strict parsing of Kubernetes objects. The types of `k8s-openapi` drop unknown fields. So each object is parsed and
//! serialized again, and a field that is then missing is unknown.
use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, ResourceRequirements, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Returns the documents of a YAML text, without empty documents.
pub(super) fn documents(text: &str) -> Vec<Value> {
    let documents = yaml_serde::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).unwrap()).filter(|value| !value.is_null()).collect()
}

/// Parses an object as `T`. Panics if the object is no valid `T`, or has a field that `T` does not have.
pub(super) fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let parsed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error} in {object:#}"));
    assert_eq!(
        &serde_json::to_value(&parsed).unwrap(),
        object,
        "left: the known fields, right: all fields of the object"
    );
    parsed
}

/// Checks an object against the type of its kind.
pub(super) fn check(object: &Value) {
    match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()) {
        ("apps/v1", "Deployment") => drop(typed::<Deployment>(object)),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => drop(typed::<HorizontalPodAutoscaler>(object)),
        ("batch/v1", "Job") => drop(typed::<Job>(object)),
        ("v1", "ConfigMap") => drop(typed::<ConfigMap>(object)),
        ("v1", "Service") => drop(typed::<Service>(object)),
        ("v1", "ServiceAccount") => drop(typed::<ServiceAccount>(object)),
        ("networking.k8s.io/v1", "NetworkPolicy") => drop(typed::<NetworkPolicy>(object)),
        ("policy/v1", "PodDisruptionBudget") => drop(typed::<PodDisruptionBudget>(object)),
        ("monitoring.coreos.com/v1", "PrometheusRule") => drop(typed::<PrometheusRule>(object)),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => drop(typed::<ServiceMonitor>(object)),
        ("monitoring.coreos.com/v1alpha1", "AlertmanagerConfig") => {
            drop(typed::<AlertmanagerConfig>(object));
        }
        ("postgresql.cnpg.io/v1", "Cluster") => drop(typed::<Cluster>(object)),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") => drop(typed::<Kustomization>(object)),
        (version, kind) => panic!("unknown kind: {version} {kind}"),
    }
}

/// A custom resource. `k8s-openapi` has types neither for Kustomize nor for the operators of Prometheus and
/// PostgreSQL. This type and the following types have only the fields that the manifests use.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Object<Spec> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

type PrometheusRule = Object<Groups>;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    for_duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_firing_for: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

type ServiceMonitor = Object<ServiceMonitorSpec>;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitorSpec {
    job_label: String,
    selector: Selector,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    scrape_timeout: String,
    honor_labels: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Labels>,
    resources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    images: Vec<Image>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    config_map_generator: Vec<ConfigMapSource>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replacements: Vec<Replacement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    patches: Vec<Patch>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    source: Source,
    targets: Vec<Target>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    kind: String,
    name: String,
    field_path: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    select: BTreeMap<String, String>,
    field_paths: Vec<String>,
    options: BTreeMap<String, bool>,
}

/// A cluster of `CloudNativePG` 1.25.
type Cluster = Object<DatabaseCluster>;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DatabaseCluster {
    instances: u8,
    image_name: String,
    postgresql: PostgresConfiguration,
    bootstrap: Bootstrap,
    managed: ManagedRoles,
    affinity: Placement,
    storage: BTreeMap<String, String>,
    resources: ResourceRequirements,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PostgresConfiguration {
    synchronous: Synchronous,
    parameters: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Synchronous {
    method: String,
    number: u8,
    data_durability: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Bootstrap {
    initdb: Initdb,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Initdb {
    database: String,
    owner: String,
    secret: SecretName,
    #[serde(rename = "postInitApplicationSQL")]
    post_init_application_sql: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SecretName {
    name: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ManagedRoles {
    roles: Vec<ManagedRole>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ManagedRole {
    name: String,
    ensure: String,
    login: bool,
    password_secret: SecretName,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Placement {
    enable_pod_anti_affinity: bool,
    topology_key: String,
    pod_anti_affinity_type: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Labels {
    pairs: BTreeMap<String, String>,
    include_selectors: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Image {
    name: String,
    new_name: String,
    new_tag: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ConfigMapSource {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    behavior: Option<String>,
    envs: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    patch: String,
}

pub(super) type AlertmanagerConfig = Object<AlertRouting>;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AlertRouting {
    pub(super) route: Route,
    pub(super) inhibit_rules: Vec<InhibitRule>,
    pub(super) receivers: Vec<AlertReceiver>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Route {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) matchers: Vec<Matcher>,
    pub(super) receiver: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) group_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group_wait: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repeat_interval: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) routes: Vec<Route>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct InhibitRule {
    pub(super) source_match: Vec<Matcher>,
    pub(super) target_match: Vec<Matcher>,
    pub(super) equal: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Matcher {
    name: String,
    match_type: String,
    value: String,
}

impl Matcher {
    /// Returns the matcher in the notation of `alertmanager.yml`, such as `severity="critical"`.
    pub(super) fn text(&self) -> String {
        format!("{}{}\"{}\"", self.name, self.match_type, self.value)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AlertReceiver {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    webhook_configs: Vec<WebhookReceiver>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookReceiver {
    url_secret: SecretKey,
    send_resolved: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SecretKey {
    name: String,
    key: String,
}
