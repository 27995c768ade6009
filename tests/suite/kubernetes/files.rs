//! The manifests of `deploy/kubernetes` agree with the service, and restrict its pods. The scripts print the rules, the
//! dashboards, and the requirements that a cluster lacks.
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
use serde_json::{Value, json};

use super::{
    DEFAULT_CONNECTION_LIMIT, OVERLAYS, Objects, REPLICATED, files, only_container,
    schema::{check, documents},
    settings, text,
};
use crate::{
    service,
    stack::{repository, tool},
};

/// Keys of the Secret `service`, with values for these tests. The Secret also has the required settings of the slices
/// (the domain modules in `src/slices`).
const SECRETS: [(&str, &str); 2] =
    [("DATABASE_URL", "postgres://app:secret@database/service"), ("OPS_TOKEN", "a-token-of-sixteen-or-more")];

#[test]
fn every_manifest_has_only_fields_that_kubernetes_knows() {
    let manifests = files("", "yaml");
    assert!(manifests.len() >= 11, "{manifests:?}");
    for file in manifests {
        documents(&text(&file)).iter().for_each(check);
    }
}

#[test]
fn an_unknown_field_is_rejected() {
    let mut deployment = documents(&text("base/deployment.yaml")).remove(0);
    check(&deployment);
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 30.into();
    assert!(std::panic::catch_unwind(|| check(&deployment)).is_err());
}

/// Returns the variables of a container, and whether each refers to a secret.
fn variables(container: &Container) -> BTreeMap<String, bool> {
    let is_secret = |variable: &k8s_openapi::api::core::v1::EnvVar| {
        variable.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some())
    };
    let variables = container.env.iter().flatten();
    variables.map(|variable| (variable.name.clone(), is_secret(variable))).collect()
}

#[test]
fn every_variable_is_a_setting_and_secrets_are_references() {
    let known: BTreeMap<_, _> = Config::settings().map(|setting| (setting.name, setting)).collect();
    for pod in Objects::of_the_base().pods() {
        let container = only_container(&pod);
        let references = format!("{:?}", container.env);
        for (name, is_secret) in variables(container) {
            match known.get(name.as_str()) {
                Some(setting) => assert_eq!(setting.secret, is_secret, "{name}"),
                // A variable that is no setting, such as `POD_NAME`, is allowed only if the value of another variable
                // refers to it.
                None => assert!(references.contains(&format!("$({name})")), "{name} is no setting"),
            }
        }
        let from = || container.env_from.iter().flatten();
        let maps: Vec<_> = from().filter_map(|from| Some(&from.config_map_ref.as_ref()?.name)).collect();
        assert_eq!(maps, ["settings"], "settings must come from one ConfigMap");
        let secrets: Vec<_> = from().filter_map(|from| Some(&from.secret_ref.as_ref()?.name)).collect();
        let expected: &[&str] = if container.name == "service" { &["service"] } else { &[] };
        assert_eq!(secrets, expected, "{}", container.name);
    }
    for name in OVERLAYS.iter().flat_map(|overlay| settings(overlay).into_keys()) {
        let setting = known.get(name.as_str()).unwrap_or_else(|| panic!("{name} is no setting"));
        assert!(!setting.secret, "{name} is a secret in a file");
    }
}

#[test]
fn the_service_accepts_the_settings_of_every_overlay() {
    let [pod, migration] = Objects::of_the_base().pods();
    for overlay in OVERLAYS {
        let mut given = settings(overlay);
        let secret = SECRETS.iter().chain(&REQUIRED);
        given.extend(secret.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let config = Config::load(Reader::new(move |name| given.get(name).cloned()))
            .unwrap_or_else(|mistakes| panic!("{overlay}: {mistakes}"));
        assert_eq!(config.process.environment.as_str(), overlay);
    }
    assert!(
        !format!("{pod:?}").contains("migration"),
        "only the migration is allowed to have the URL with the owner's password"
    );
    let of_the_migration = variables(only_container(&migration));
    assert_eq!(of_the_migration.into_keys().collect::<Vec<_>>(), ["DATABASE_MIGRATION_URL", "DATABASE_URL"]);
}

fn probe_and_seconds(probe: Option<&Probe>) -> (String, u32) {
    let probe = probe.unwrap();
    let get = probe.http_get.as_ref().unwrap();
    assert_eq!(get.port, IntOrString::String("operations".to_owned()));
    let seconds = probe.period_seconds.unwrap() * probe.failure_threshold.unwrap();
    (get.path.clone().unwrap(), u32::try_from(seconds).unwrap())
}

#[tokio::test]
async fn probes_and_scrapes_use_existing_routes() {
    let objects = Objects::of_the_base();
    let [pod, _] = objects.pods();
    let container = only_container(&pod);
    let (startup, startup_seconds) = probe_and_seconds(container.startup_probe.as_ref());
    let (liveness, _) = probe_and_seconds(container.liveness_probe.as_ref());
    let (readiness, _) = probe_and_seconds(container.readiness_probe.as_ref());
    let wait = Config::settings().find(|setting| setting.name == "DATABASE_STARTUP_WAIT_SECONDS");
    let wait_seconds: u32 = wait.unwrap().default.unwrap().parse().unwrap();
    assert!(
        startup_seconds > wait_seconds,
        "the service may wait for the database for {wait_seconds} s, but the start-up probe allows {startup_seconds} s"
    );

    let monitor = objects.of_kind("ServiceMonitor")[0];
    let scraped = monitor["spec"]["endpoints"][0]["path"].as_str().unwrap().to_owned();
    let service = service().await;
    for path in [startup, liveness, readiness, scraped] {
        let url = service.ops_url().join(&path).unwrap();
        let response = reqwest::get(url).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[test]
fn ports_match_the_listeners_which_stay_separate() {
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
        assert_eq!(targets.len(), 1, "{name} must lead to one listener");
        assert_eq!(targets[0].target_port, Some(IntOrString::String(target.to_owned())));
    }
    let monitor = objects.of_kind("ServiceMonitor")[0];
    let named = objects.service("operations").spec.unwrap().ports.unwrap()[0].name.clone();
    assert_eq!(monitor["spec"]["endpoints"][0]["port"].as_str(), named.as_deref());
    assert_eq!(
        monitor["spec"]["endpoints"][0]["honorLabels"], true,
        "the label `service` of a metric would be renamed"
    );
}

#[test]
fn the_grace_period_covers_the_shutdown_deadline() {
    let [pod, _] = Objects::of_the_base().pods();
    for overlay in OVERLAYS {
        let deadline: i64 = settings(overlay)["SHUTDOWN_DEADLINE_SECONDS"].parse().unwrap();
        assert!(pod.termination_grace_period_seconds.unwrap() > deadline);
    }
    assert!(
        only_container(&pod).lifecycle.is_none(),
        "no hook is needed: the service itself waits before it closes its listeners"
    );
}

#[test]
fn all_pods_fit_into_the_databases_connection_limit() {
    let objects = Objects::of_the_base();
    let rolling = objects.deployment().spec.unwrap().strategy.unwrap().rolling_update.unwrap();
    let Some(IntOrString::Int(surge)) = rolling.max_surge else {
        panic!("max_surge is not a number of pods")
    };
    let max_pods = u32::try_from(objects.autoscaler().spec.unwrap().max_replicas + surge).unwrap();
    for overlay in OVERLAYS {
        let connections_per_pod: u32 = settings(overlay)["DATABASE_MAX_CONNECTIONS"].parse().unwrap();
        assert!(
            max_pods * (connections_per_pod + 1) < DEFAULT_CONNECTION_LIMIT,
            "{overlay}: each of {max_pods} pods needs {connections_per_pod} connections and one to monitor the database, \
             and the migration needs one: more than {DEFAULT_CONNECTION_LIMIT}"
        );
    }
}

/// Asserts the profile `restricted` of the Pod Security Standards, and a read-only root file system. The pod must also
/// have no token of a service account, no variables with the addresses of Services, and no CPU limit.
fn assert_restricted(pod: &PodSpec) {
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
fn pods_meet_the_restricted_pod_security_standard() {
    Objects::of_the_base().pods().iter().for_each(assert_restricted);
}

#[test]
fn every_pod_selector_matches_pods() {
    let objects = Objects::of_the_base();
    let components: BTreeSet<_> = ["Deployment", "Job"]
        .iter()
        .flat_map(|kind| objects.of_kind(kind))
        .map(|object| &object["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"])
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(components, ["migration", "service"].into());
    let mut checked = 0;
    for (kind, path) in [
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("Deployment", "/spec/selector/matchLabels"),
    ] {
        for selector in objects.of_kind(kind).into_iter().filter_map(|object| object.pointer(path)) {
            assert_eq!(selector, &serde_json::json!({"app.kubernetes.io/component": "service"}), "{kind}");
            checked += 1;
        }
    }
    assert_eq!(checked, 5);
}

/// Runs a script of `deploy/kubernetes` with these variables. Returns the objects that the script prints.
fn run_script(script: &str, environment: &[(&str, &str)]) -> Vec<Value> {
    let script = repository().join(super::DIRECTORY).join(script);
    let printed = Command::new("sh").arg(script).envs(environment.iter().copied()).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    documents(&String::from_utf8(printed.stdout).unwrap())
}

const JOB: &str = env!("CARGO_PKG_NAME");

/// The addresses in the rule files, which are those of `docker-compose.yml`. With them, `rules.sh` changes no address.
const DEMO: [(&str, &str); 2] =
    [("RUNBOOKS_URL", "http://localhost:8025/runbooks/"), ("DASHBOARDS_URL", "http://localhost:3000/d/")];

/// Removes from a query the job matchers that `rules.sh` adds.
fn without_jobs(query: &str) -> String {
    let own = format!("job=\"{JOB}\"");
    [own.as_str(), "job=\"postgres\""].iter().fold(query.to_owned(), |query, matcher| {
        query.replace(&format!("{{{matcher}}}"), "").replace(&format!("{matcher}, "), "")
    })
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
        "after the loss of one instance, too few instances can confirm a commit"
    );
    let connections: u32 =
        spec["postgresql"]["parameters"]["max_connections"].as_str().unwrap().parse().unwrap();
    assert!(connections >= DEFAULT_CONNECTION_LIMIT);
    // The cluster has the roles that the script `roles.sh` creates in the other deployments.
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
fn the_script_prints_only_the_rules_of_the_service() {
    let mut objects = BTreeMap::new();
    for mut object in run_script("rules.sh", &DEMO) {
        check(&object);
        objects.insert(object["metadata"]["name"].as_str().unwrap().to_owned(), object["spec"].take());
    }
    let mut expected = BTreeMap::new();
    for file in fs::read_dir(repository().join("prometheus/rules")).unwrap() {
        let path = file.unwrap().path();
        let rules = documents(&fs::read_to_string(&path).unwrap()).remove(0);
        expected.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), rules);
    }
    expected.remove("monitoring").unwrap();
    for spec in objects.values_mut() {
        for_each_rule(spec, |rule| {
            if rule["alert"].is_string() {
                assert_eq!(rule["labels"]["namespace"], JOB);
                rule["labels"].as_object_mut().unwrap().remove("namespace");
            }
            let constant = rule["expr"].as_str().unwrap().starts_with("vector(");
            if constant {
                assert_eq!(rule["labels"].as_object_mut().unwrap().remove("job").unwrap(), JOB);
            }
        });
    }
    for spec in objects.values_mut().chain(expected.values_mut()) {
        for_each_rule(spec, |rule| rule["expr"] = without_jobs(rule["expr"].as_str().unwrap()).into());
    }
    assert_eq!(objects, expected);
}

fn for_each_rule(spec: &mut Value, mut change: impl FnMut(&mut Value)) {
    for group in spec["groups"].as_array_mut().unwrap() {
        group["rules"].as_array_mut().unwrap().iter_mut().for_each(&mut change);
    }
}

#[test]
fn the_script_gives_every_rule_object_the_label_of_the_stack() {
    for object in run_script("rules.sh", &[("LABEL", "release=stack")]) {
        check(&object);
        assert_eq!(object["metadata"]["labels"]["release"], "stack");
    }
}

/// Runs a promtool test of the rules that `rules.sh` prints for a cluster. Returns `None` if promtool is not installed.
fn promtool_passes(test: &Value) -> Option<Result<(), String>> {
    let promtool = tool("promtool")?;
    let directory = tempdir();
    for object in run_script("rules.sh", &DEMO) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        fs::write(directory.join(format!("{name}.yml")), object["spec"].to_string()).unwrap();
    }
    fs::write(directory.join("test.json"), test.to_string()).unwrap();
    let ran =
        Command::new(promtool).current_dir(&directory).args(["test", "rules", "test.json"]).output().unwrap();
    fs::remove_dir_all(&directory).unwrap();
    let output = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    Some(if ran.status.success() { Ok(()) } else { Err(output) })
}

fn tempdir() -> std::path::PathBuf {
    let directory = std::env::temp_dir().join(format!("rules-{}", uuid::Uuid::now_v7().simple()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Returns healthy series of the service, and unhealthy series of `job` for metrics that the rules use. If `job` is the
/// service itself, the unhealthy series fire alerts.
fn series_of_jobs(job: &str) -> Vec<Value> {
    let mut series = vec![
        (format!("up{{job=\"{JOB}\", instance=\"own\"}}"), "1x60"),
        (format!("http_requests_total{{job=\"{JOB}\", instance=\"own\", status=\"200\"}}"), "0+60x60"),
        (format!("db_connections_max{{job=\"{JOB}\", instance=\"own\"}}"), "16x60"),
        (
            format!("worker_last_success_timestamp_seconds{{job=\"{JOB}\", instance=\"own\", worker=\"w\"}}"),
            "0+60x60",
        ),
    ];
    let labels = format!("job=\"{job}\", instance=\"node\"");
    for (name, more, values) in [
        ("up", "", "0x60"),
        ("pg_up", "", "0x60"),
        ("http_requests_total", ", status=\"500\"", "0+60x60"),
        ("http_request_duration_seconds_bucket", ", le=\"0.25\"", "0x60"),
        ("http_request_duration_seconds_bucket", ", le=\"+Inf\"", "0+60x60"),
        ("http_request_duration_seconds_count", "", "0+60x60"),
        ("process_start_time_seconds", "", "0+60x60"),
        ("prometheus_rule_evaluation_failures_total", "", "0+60x60"),
    ] {
        series.push((format!("{name}{{{labels}{more}}}"), values));
    }
    let series = series.into_iter().map(|(series, values)| json!({ "series": series, "values": values }));
    series.collect()
}

/// Returns a test for promtool: after 59 minutes of these series, no alert fires. The test ignores alerts whose label
/// `scope` names a slice. These alerts report missing metrics of the slice, and the series contain no such metrics.
fn no_alert_test(series: &[Value]) -> Value {
    let mut rule_files: Vec<_> = run_script("rules.sh", &DEMO)
        .iter()
        .map(|object| format!("{}.yml", object["metadata"]["name"].as_str().unwrap()))
        .collect();
    rule_files.sort();
    let query = "count(ALERTS{alertstate=\"firing\", scope=~\"|service\"}) or vector(0)";
    let expected = json!([{ "labels": "{}", "value": 0 }]);
    json!({
        "rule_files": rule_files,
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": series,
            "promql_expr_test": [{ "expr": query, "eval_time": "59m", "exp_samples": expected }],
        }],
    })
}

#[test]
fn series_of_other_jobs_of_a_cluster_fire_no_alert() {
    for job in ["thanos-query", "kubelet", "node-exporter"] {
        let Some(result) = promtool_passes(&no_alert_test(&series_of_jobs(job))) else { return };
        result.unwrap_or_else(|error| panic!("{job}: {error}"));
    }
    // The same series fire alerts if they belong to the service's own job.
    assert!(promtool_passes(&no_alert_test(&series_of_jobs(JOB))).unwrap().is_err());
}

#[test]
fn the_script_prints_every_dashboard_as_a_config_map() {
    let address = [("ALERTS_URL", "http://localhost:8025")];
    let mut names = BTreeSet::new();
    for object in run_script("dashboards.sh", &address) {
        check(&object);
        assert_eq!(object["metadata"]["labels"]["grafana_dashboard"], "1");
        let (name, text) = object["data"].as_object().unwrap().iter().next().unwrap();
        let file = fs::read_to_string(repository().join("grafana/dashboards").join(name)).unwrap();
        assert_eq!(text.as_str(), Some(file.as_str()), "{name}");
        names.insert(name.clone());
    }
    let entries = fs::read_dir(repository().join("grafana/dashboards")).unwrap();
    let expected = entries.map(|entry| entry.unwrap().path());
    let expected = expected.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    assert_eq!(names, expected.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect());
}

#[test]
fn every_overlay_uses_a_tag_that_a_release_pushes() {
    for overlay in OVERLAYS {
        let kustomization = documents(&text(&format!("overlays/{overlay}/kustomization.yaml"))).remove(0);
        assert_eq!(kustomization["images"][0]["newTag"], env!("CARGO_PKG_VERSION"), "{overlay}");
    }
}

#[test]
fn a_slow_migration_does_not_fail_the_rollout() {
    let objects = Objects::of_the_base();
    let migration = objects.migration().spec.unwrap().active_deadline_seconds.unwrap();
    let rollout = objects.deployment().spec.unwrap().progress_deadline_seconds.unwrap();
    assert!(i64::from(rollout) > migration, "the deadlines: rollout {rollout} s, migration {migration} s");
    let waits = format!("--for=condition=complete --timeout={migration}s job/migrate");
    assert!(text("README.md").contains(&waits), "{waits}");
}

/// Runs the script `check` with a stub of `kubectl`. Each line of `responses` has a word and a response. The stub
/// prints the response of the first line whose word occurs in the stub's arguments, and fails if no line matches.
/// Returns the exit status of the script and its output.
fn check_cluster(responses: &str) -> (Option<i32>, String) {
    let directory = tempdir();
    let kubectl = directory.join("kubectl");
    let stub = format!(
        "#!/bin/sh\nwhile read -r words response; do case \"$*\" in *\"$words\"*) printf %s \"$response\"; exit 0;; esac; done <<'END'\n{responses}END\nexit 1\n"
    );
    fs::write(&kubectl, stub).unwrap();
    fs::set_permissions(&kubectl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let script = repository().join(super::DIRECTORY).join("check");
    let ran = Command::new("sh").arg(script).env("PATH", path).output().unwrap();
    fs::remove_dir_all(&directory).unwrap();
    (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
}

#[test]
fn the_check_reports_what_a_cluster_lacks() {
    let (status, report) = check_cluster("version {}\n");
    assert_eq!(status, Some(1));
    for missing in
        ["namespace", "Secret service", "CustomResourceDefinition prometheusrules", "metrics server"]
    {
        assert!(report.contains(&format!("missing  {missing}")), "{missing}: {report}");
    }

    let complete = "version {}\n.spec.retention 35d\n.spec.enableFeatures exemplar-storage\n\
        .spec.evaluationInterval 30s\nmatchLabels.release kube-prometheus-stack\nget found\n";
    let (status, report) = check_cluster(complete);
    assert_eq!((status, report.contains("missing")), (Some(0), false), "{report}");

    let empty_selectors = complete.replace("kube-prometheus-stack", "");
    let (status, report) = check_cluster(&empty_selectors);
    assert_eq!((status, report.matches("release=anything").count()), (Some(0), 2), "{report}");
    let no_selectors =
        complete.replace("get found", ".spec.serviceMonitorSelector}\n.spec.ruleSelector}\nget found");
    let no_selectors =
        no_selectors.replace("matchLabels.release kube-prometheus-stack\n", "matchLabels.release\n");
    let (status, report) = check_cluster(&no_selectors);
    assert_eq!((status, report.matches("selects nothing").count()), (Some(1), 2), "{report}");

    for (duration, other, is_enough) in
        [("35d", "720h", true), ("35d", "29d23h", false), ("30s", "20s", true), ("30s", "1m30s", false)]
    {
        let (status, report) = check_cluster(&complete.replace(duration, other));
        assert_eq!(status, Some(i32::from(!is_enough)), "{other}: {report}");
    }

    let short = complete.replace("35d", "10d").replace("exemplar-storage", "otlp-deltatocumulative");
    let (status, report) = check_cluster(&short);
    assert_eq!((status, report.matches("missing").count()), (Some(1), 2), "{report}");
}
