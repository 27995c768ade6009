//! The files as they stand, held against the service.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use app::config::Config;
use dev::harness::REQUIRED;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use platform::settings::Reader;
use serde_json::Value;

use super::{
    CONNECTIONS_OF_A_DATABASE, OVERLAYS, Objects, REPLICATED, files, only_container,
    schema::{check, documents},
    settings, text,
};
use crate::{service, stack::repository};

/// Keys of the Secret `service`, besides the required settings of the slices. The values exist in a cluster only.
const SECRETS: [(&str, &str); 2] =
    [("DATABASE_URL", "postgres://app:secret@database/service"), ("OPS_TOKEN", "a-token-of-sixteen-or-more")];

#[test]
fn every_manifest_has_only_what_kubernetes_knows() {
    let manifests = files("", "yaml");
    assert!(manifests.len() >= 11, "{manifests:?}");
    for file in manifests {
        documents(&text(&file)).iter().for_each(check);
    }
}

#[test]
fn an_unknown_field_does_not_pass() {
    let mut deployment = documents(&text("base/deployment.yaml")).remove(0);
    check(&deployment);
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 30.into();
    assert!(std::panic::catch_unwind(|| check(&deployment)).is_err());
}

/// The variables of a container: its own, and whether each is of a secret.
fn variables(container: &Container) -> BTreeMap<String, bool> {
    let of_a_secret = |variable: &k8s_openapi::api::core::v1::EnvVar| {
        variable.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some())
    };
    let variables = container.env.iter().flatten();
    variables.map(|variable| (variable.name.clone(), of_a_secret(variable))).collect()
}

#[test]
fn every_variable_is_a_setting_and_secrets_come_from_secrets_alone() {
    let known: BTreeMap<_, _> = Config::settings().map(|setting| (setting.name, setting)).collect();
    for pod in Objects::of_the_base().pods() {
        let container = only_container(&pod);
        let references = format!("{:?}", container.env);
        for (name, of_a_secret) in variables(container) {
            match known.get(name.as_str()) {
                Some(setting) => assert_eq!(setting.secret, of_a_secret, "{name}"),
                // What Kubernetes knows of the pod, and another variable is made of.
                None => assert!(references.contains(&format!("$({name})")), "{name} is no setting"),
            }
        }
        let from = || container.env_from.iter().flatten();
        let maps: Vec<_> = from().filter_map(|from| Some(&from.config_map_ref.as_ref()?.name)).collect();
        assert_eq!(maps, ["settings"], "settings come from one ConfigMap");
        let secrets: Vec<_> = from().filter_map(|from| Some(&from.secret_ref.as_ref()?.name)).collect();
        let expected: &[&str] = if container.name == "service" { &["service"] } else { &[] };
        assert_eq!(secrets, expected, "{}", container.name);
    }
    for name in OVERLAYS.iter().flat_map(|overlay| settings(overlay).into_keys()) {
        let setting = known.get(name.as_str()).unwrap_or_else(|| panic!("{name} is no setting"));
        assert!(!setting.secret, "{name} is a secret, and stands in a file");
    }
}

#[test]
fn the_service_takes_the_settings_of_every_overlay() {
    let [pod, migration] = Objects::of_the_base().pods();
    for overlay in OVERLAYS {
        let mut given = settings(overlay);
        let secret = SECRETS.iter().chain(&REQUIRED);
        given.extend(secret.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let config = Config::load(Reader::new(move |name| given.get(name).cloned()))
            .unwrap_or_else(|mistakes| panic!("{overlay}: {mistakes}"));
        assert_eq!(config.process.environment.as_str(), overlay);
    }
    assert!(!format!("{pod:?}").contains("migration"), "the service does not see the owner's password");
    let of_the_migration = variables(only_container(&migration));
    assert_eq!(of_the_migration.into_keys().collect::<Vec<_>>(), ["DATABASE_MIGRATION_URL", "DATABASE_URL"]);
}

fn asks(probe: Option<&Probe>) -> (String, u32) {
    let probe = probe.unwrap();
    let get = probe.http_get.as_ref().unwrap();
    assert_eq!(get.port, IntOrString::String("operations".to_owned()));
    let seconds = probe.period_seconds.unwrap() * probe.failure_threshold.unwrap();
    (get.path.clone().unwrap(), u32::try_from(seconds).unwrap())
}

#[tokio::test]
async fn probes_and_scrapes_ask_what_the_service_answers() {
    let objects = Objects::of_the_base();
    let [pod, _] = objects.pods();
    let container = only_container(&pod);
    let (startup, patience) = asks(container.startup_probe.as_ref());
    let (liveness, _) = asks(container.liveness_probe.as_ref());
    let (readiness, _) = asks(container.readiness_probe.as_ref());
    let waits = Config::settings().find(|setting| setting.name == "DATABASE_STARTUP_WAIT_SECONDS");
    let waits: u32 = waits.unwrap().default.unwrap().parse().unwrap();
    assert!(patience > waits, "a database may take {waits} s to come, and the start has {patience} s");

    let monitor = objects.of_kind("ServiceMonitor")[0];
    let scraped = monitor["spec"]["endpoints"][0]["path"].as_str().unwrap().to_owned();
    let service = service().await;
    for path in [startup, liveness, readiness, scraped] {
        let url = service.ops_url().join(&path).unwrap();
        let answer = reqwest::get(url).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
}

#[test]
fn ports_are_those_that_the_service_listens_on_and_the_two_listeners_stay_apart() {
    let objects = Objects::of_the_base();
    let [pod, _] = objects.pods();
    let ports: BTreeMap<_, _> = only_container(&pod)
        .ports
        .iter()
        .flatten()
        .map(|port| (port.name.clone().unwrap(), port.container_port.to_string()))
        .collect();
    for overlay in OVERLAYS {
        let settings = settings(overlay);
        let listens = |name: &str| settings[name].rsplit_once(':').unwrap().1.to_owned();
        let expected = [("api", listens("API_ADDRESS")), ("operations", listens("OPS_ADDRESS"))];
        assert_eq!(ports, expected.map(|(name, port)| (name.to_owned(), port)).into());
    }
    for (name, target) in [("api", "api"), ("operations", "operations")] {
        let targets: Vec<_> = objects.service(name).spec.unwrap().ports.unwrap();
        assert_eq!(targets.len(), 1, "{name} leads to one listener");
        assert_eq!(targets[0].target_port, Some(IntOrString::String(target.to_owned())));
    }
    let monitor = objects.of_kind("ServiceMonitor")[0];
    let named = objects.service("operations").spec.unwrap().ports.unwrap()[0].name.clone();
    assert_eq!(monitor["spec"]["endpoints"][0]["port"].as_str(), named.as_deref());
    assert_eq!(monitor["spec"]["endpoints"][0]["honorLabels"], true, "our label `service` keeps its name");
}

#[test]
fn a_pod_that_ends_has_the_time_that_the_service_takes() {
    let [pod, _] = Objects::of_the_base().pods();
    for overlay in OVERLAYS {
        let deadline: i64 = settings(overlay)["SHUTDOWN_DEADLINE_SECONDS"].parse().unwrap();
        assert!(pod.termination_grace_period_seconds.unwrap() > deadline);
    }
    assert!(only_container(&pod).lifecycle.is_none(), "the service itself waits before it closes");
}

#[test]
fn all_pods_together_ask_the_database_for_no_more_connections_than_it_has() {
    let objects = Objects::of_the_base();
    let rolling = objects.deployment().spec.unwrap().strategy.unwrap().rolling_update.unwrap();
    let Some(IntOrString::Int(surge)) = rolling.max_surge else { panic!("a number of pods") };
    let most = u32::try_from(objects.autoscaler().spec.unwrap().max_replicas + surge).unwrap();
    for overlay in OVERLAYS {
        let each: u32 = settings(overlay)["DATABASE_MAX_CONNECTIONS"].parse().unwrap();
        assert!(
            most * (each + 1) < CONNECTIONS_OF_A_DATABASE,
            "{overlay}: {most} × ({each} and the monitor's one), and the migration's one"
        );
    }
}

/// The profile `restricted` of the Pod Security Standards, and a root file system that nobody writes to.
fn is_restricted(pod: &PodSpec) {
    let context = pod.security_context.as_ref().unwrap();
    assert_eq!(context.run_as_non_root, Some(true));
    assert_ne!(context.run_as_user, Some(0));
    assert_eq!(context.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.enable_service_links, Some(false));
    assert!(pod.host_network.is_none() && pod.host_pid.is_none() && pod.host_ipc.is_none());
    let container = only_container(pod);
    let context = container.security_context.as_ref().unwrap();
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert_eq!(context.capabilities.as_ref().unwrap().drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let resources = container.resources.as_ref().unwrap();
    let requests = resources.requests.as_ref().unwrap();
    assert!(requests.contains_key("cpu") && requests.contains_key("memory"));
    let limits: Vec<_> = resources.limits.iter().flatten().map(|(resource, _)| resource.as_str()).collect();
    assert_eq!(limits, ["memory"]);
}

#[test]
fn pods_have_no_rights() {
    Objects::of_the_base().pods().iter().for_each(is_restricted);
}

#[test]
fn whatever_selects_pods_selects_some() {
    let objects = Objects::of_the_base();
    let components: BTreeSet<_> = ["Deployment", "Job"]
        .iter()
        .flat_map(|kind| objects.of_kind(kind))
        .map(|object| &object["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(components, ["migration", "service"].into());
    let mut looked_at = 0;
    for (kind, path) in [
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("Deployment", "/spec/selector/matchLabels"),
    ] {
        for selector in objects.of_kind(kind).into_iter().filter_map(|object| object.pointer(path)) {
            assert_eq!(selector, &serde_json::json!({"app.kubernetes.io/component": "service"}), "{kind}");
            looked_at += 1;
        }
    }
    assert_eq!(looked_at, 5);
}

#[test]
fn the_replicated_database_confirms_a_commit_on_two_instances() {
    let cluster = documents(&text(&format!("overlays/{REPLICATED}/database.yaml"))).remove(0);
    let spec = &cluster["spec"];
    let synchronous = &spec["postgresql"]["synchronous"];
    assert_eq!(
        (&synchronous["method"], &synchronous["number"], &synchronous["dataDurability"]),
        (&"any".into(), &1.into(), &"required".into())
    );
    assert!(
        spec["instances"].as_u64().unwrap() > 1 + synchronous["number"].as_u64().unwrap(),
        "one may be lost"
    );
    let connections: u32 =
        spec["postgresql"]["parameters"]["max_connections"].as_str().unwrap().parse().unwrap();
    assert!(connections >= CONNECTIONS_OF_A_DATABASE);
    // The roles are those that the script creates elsewhere.
    let script = std::fs::read_to_string(repository().join("deploy/postgres/roles.sh")).unwrap();
    let initdb = &spec["bootstrap"]["initdb"];
    let (owner, service) = (initdb["owner"].as_str().unwrap(), &spec["managed"]["roles"][0]["name"]);
    assert_eq!(Some(owner.replace("_owner", "_service").as_str()), service.as_str());
    let statements = initdb["postInitApplicationSQL"].as_array().unwrap();
    let grants = format!("grant {} to {owner} with admin option", service.as_str().unwrap());
    assert!(statements.contains(&grants.into()), "{statements:?}");
    assert!(script.contains("with admin option") && script.contains("login createrole"), "{script}");
    assert!(statements.contains(&format!("alter role {owner} createrole").into()), "{statements:?}");
}

#[test]
fn the_script_prints_every_rule_file_as_an_object() {
    let script = repository().join(super::DIRECTORY).join("rules.sh");
    let printed = Command::new("sh").arg(script).output().unwrap();
    assert!(printed.status.success());
    let mut objects = BTreeMap::new();
    for mut object in documents(&String::from_utf8(printed.stdout).unwrap()) {
        check(&object);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut spec = object["spec"].take();
        forget_addresses(&mut spec);
        objects.insert(name, spec);
    }
    let mut expected = BTreeMap::new();
    for file in fs::read_dir(repository().join("prometheus/rules")).unwrap() {
        let path = file.unwrap().path();
        let mut rules = documents(&fs::read_to_string(&path).unwrap()).remove(0);
        forget_addresses(&mut rules);
        expected.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), rules);
    }
    assert!(!expected.is_empty());
    assert_eq!(objects, expected);
}

/// Runbooks and dashboards have other addresses in a cluster; what they are called is the same.
fn forget_addresses(rules: &mut Value) {
    for group in rules["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap().iter_mut().filter(|rule| rule["alert"].is_string())
        {
            for link in ["runbook_url", "dashboard_url"] {
                let name = rule["annotations"][link].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
                rule["annotations"][link] = name.into();
            }
        }
    }
}
