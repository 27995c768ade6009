//! The rules, dashboards, runbooks and configuration of the stack, compared with each other and with the sources, and
//! checked by promtool, amtool and pint.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::tools::{run, tool};
use crate::docs::{
    assert_complete,
    compliance::rows,
    structure::{declared_metrics, sources},
};

/// Prefix of the URLs of runbooks in the stack. `deploy/kubernetes/rules.sh` replaces this prefix in all rules.
const RUNBOOKS: &str = "http://localhost:8025/runbooks/";
const DASHBOARDS: &str = "http://localhost:3000/d/";

/// The sections of a runbook, in this order.
const SECTIONS: [&str; 8] = [
    "Meaning",
    "Impact",
    "First five minutes",
    "Causes",
    "What to do",
    "Recovery",
    "Escalate",
    "Threshold and drill",
];

#[derive(Deserialize)]
pub(super) struct Rules {
    pub(super) groups: Vec<Group>,
}

#[derive(Deserialize)]
pub(super) struct Group {
    pub(super) rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
pub(super) struct Rule {
    pub(super) alert: Option<String>,
    pub(super) record: Option<String>,
    pub(super) expr: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RuleTests {
    tests: Vec<RuleTest>,
}

#[derive(Deserialize)]
struct RuleTest {
    alert_rule_test: Vec<AlertTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<ExpectedAlert>,
}

#[derive(Deserialize)]
struct ExpectedAlert {
    exp_labels: BTreeMap<String, String>,
    exp_annotations: BTreeMap<String, String>,
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the sorted paths of the files with this extension in a directory. Panics if there is no such file.
pub(super) fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join(directory)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    assert!(!files.is_empty(), "{directory} has no .{extension} files");
    files
}

fn read<T: serde::de::DeserializeOwned>(directory: &str) -> Vec<T> {
    let parse = |path: PathBuf| {
        yaml_serde::from_str(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files(directory, "yml").into_iter().map(parse).collect()
}

pub(super) fn rules() -> Vec<Rule> {
    let groups = read::<Rules>("prometheus/rules").into_iter().flat_map(|rules| rules.groups);
    groups.flat_map(|group| group.rules).collect()
}

pub(super) fn alerts() -> Vec<(String, Rule)> {
    rules().into_iter().filter_map(|rule| Some((rule.alert.clone()?, rule))).collect()
}

fn alert_names() -> BTreeSet<String> {
    alerts().into_iter().map(|(name, _)| name).collect()
}

/// Returns the names of the alerts that the service itself sends, each with its incident (if it has one). The names are
/// read from the sources.
pub(super) fn service_alert_conditions() -> BTreeMap<String, Option<String>> {
    let mut conditions = BTreeMap::new();
    for (_, text) in sources() {
        for call in text.split("Condition::").skip(1) {
            let arguments = call.split(')').next().unwrap();
            let mut strings = arguments.split('"').skip(1).step_by(2).map(str::to_owned);
            if let Some(name) = strings.next() {
                conditions.insert(name, strings.next());
            }
        }
    }
    assert!(!conditions.is_empty());
    conditions
}

/// Returns the names of all alerts: those of the rules, and those that the service itself sends.
fn all_names() -> BTreeSet<String> {
    alert_names().into_iter().chain(service_alert_conditions().into_keys()).collect()
}

pub(super) fn dashboards() -> Vec<(PathBuf, Value)> {
    let parse = |path: PathBuf| {
        let dashboard = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        (path, dashboard)
    };
    files("grafana/dashboards", "json").into_iter().map(parse).collect()
}

fn runbooks() -> BTreeMap<String, String> {
    let named = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    files("docs/runbooks", "md")
        .into_iter()
        .map(named)
        .filter(|(name, _)| !name.starts_with("README"))
        .collect()
}

#[test]
fn every_alert_has_severity_summary_and_runbook() {
    let uids: BTreeSet<_> = dashboards()
        .into_iter()
        .map(|(_, dashboard)| dashboard["uid"].as_str().unwrap().to_owned())
        .collect();
    for (name, rule) in alerts() {
        let annotation =
            |key: &str| rule.annotations.get(key).unwrap_or_else(|| panic!("{name} has no {key}")).as_str();
        let severity = rule.labels.get("severity").unwrap_or_else(|| panic!("{name} has no severity"));
        assert!(["critical", "warning", "none"].contains(&severity.as_str()), "{name}: {severity}");
        assert!(annotation("summary").ends_with('.') && !annotation("summary").contains("{{"), "{name}");
        assert!(annotation("description").ends_with('.'), "{name}");
        assert_eq!(annotation("runbook_url"), format!("{RUNBOOKS}{name}"));
        let dashboard = annotation("dashboard_url").strip_prefix(DASHBOARDS);
        assert!(dashboard.is_some_and(|uid| uids.contains(uid)), "{name} links to a missing dashboard");
        assert!(!rule.labels.values().any(|value| value.contains("{{")), "{name} has a label that changes");
    }
}

/// Alertmanager treats alerts with the same labels as one alert. So of two rules with the same labels, one rule could
/// resolve the alert of the other.
#[test]
fn alerts_of_one_name_differ_in_their_labels() {
    let mut known = BTreeSet::new();
    for (name, rule) in alerts() {
        // Two rules of one name can get the same labels from their series, so the labels of the rules themselves must
        // differ.
        assert!(known.insert((name.clone(), rule.labels)), "two rules of {name} have the same labels");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let written: BTreeSet<_> = runbooks().into_keys().collect();
    assert_complete("docs/runbooks", &written, "the alerts of the rules and of the service", &all_names());
}

#[test]
fn the_services_own_alerts_belong_to_the_incident_of_their_rule() {
    let mut compared = 0;
    for (name, incident) in service_alert_conditions() {
        for (_, rule) in alerts().into_iter().filter(|(rule, _)| *rule == name) {
            assert_eq!(rule.labels.get("incident"), incident.as_ref(), "{name}");
            let role = rule.labels.get("incident_role").map(String::as_str);
            assert_eq!(role, incident.is_some().then_some("symptom"), "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 3, "{compared}");
}

#[test]
fn every_runbook_has_the_same_sections_in_the_same_order() {
    for (name, text) in runbooks() {
        assert!(
            text.starts_with(&format!("# {name}\n")),
            "{name}: the heading must be the name of the alert"
        );
        let sections: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(sections, SECTIONS, "{name}");
    }
}

#[test]
fn every_runbook_has_commands_for_a_cluster() {
    for (name, text) in runbooks() {
        let (_, first) = text.split_once("## First five minutes").unwrap();
        let (first, _) = first.split_once("\n## ").unwrap();
        assert!(first.lines().any(|line| line.contains("kubectl ")), "{name}");
    }
}

#[test]
fn the_list_of_runbooks_is_complete() {
    const HEADING: &str = "| alert | severity | meaning |";
    let rows = rows(HEADING);
    let listed = rows.iter().filter_map(|row| row.strip_prefix("| [")?.split(']').next());
    assert_complete(
        &format!("the tables \"{HEADING}\" of docs"),
        &listed.map(str::to_owned).collect(),
        "the alerts of the rules and of the service",
        &all_names(),
    );
}

#[test]
fn every_alert_has_a_drill_with_its_result() {
    const HEADING: &str = "| alert | rules | what happened |";
    let mut drilled = BTreeSet::new();
    for row in rows(HEADING) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [alert, rules, happened] = cells[..] else { panic!("{row}") };
        assert!(["as they are", "shortened", "promtool", "none"].contains(&rules), "{row}");
        assert!(!happened.is_empty(), "{row}");
        drilled.insert(alert.to_owned());
    }
    assert_complete(
        &format!("the tables \"{HEADING}\" of docs"),
        &drilled,
        "the alerts of the rules and of the service",
        &all_names(),
    );
}

#[test]
fn every_alert_is_tested_where_it_fires_and_where_it_does_not() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for case in read::<RuleTests>("prometheus/tests").into_iter().flat_map(|file| file.tests) {
        for check in case.alert_rule_test {
            let tested = if check.exp_alerts.is_empty() { &mut silent } else { &mut fires };
            tested.insert(check.alertname.clone());
            for alert in check.exp_alerts {
                assert!(alert.exp_labels.contains_key("severity"), "{}", check.alertname);
                assert!(alert.exp_annotations.contains_key("description"), "{}", check.alertname);
            }
        }
    }
    // Watchdog always fires, so it has no silent case.
    silent.insert("Watchdog".to_owned());
    let rules = "the alerts of prometheus/rules";
    assert_complete("the firing cases of prometheus/tests", &fires, rules, &alert_names());
    assert_complete("the silent cases of prometheus/tests", &silent, rules, &alert_names());
}

/// The alert `AuditTrailSilent` compares the number of created records with the events of the audit log. The alert
/// reads the number from the series `RECORD`, so it ignores a counter that no rule records in this series.
#[test]
fn every_counter_of_created_records_is_recorded_for_the_audit() {
    const RECORD: &str = "job:records_created:increase15m";
    let recorded = rules().into_iter().filter(|rule| rule.record.as_deref() == Some(RECORD));
    let expressions: Vec<_> = recorded.map(|rule| rule.expr).collect();
    assert!(!expressions.is_empty(), "prometheus/rules has no {RECORD}");
    for counter in declared_metrics().into_iter().filter(|name| name.ends_with("_created_total")) {
        let is_recorded = expressions.iter().any(|expression| expression.contains(&counter));
        assert!(is_recorded, "prometheus/rules records no {RECORD} of {counter}");
    }
}

/// A query of raw series over days can take longer than the evaluation interval of its rule group, so alerts would fire
/// late. `.ci/checks/rule-cost --long` measures the evaluation time of each rule group.
#[test]
fn windows_of_days_read_recorded_series() {
    let mut windows = 0;
    for rule in rules() {
        for call in ["rate(", "increase("].iter().flat_map(|function| rule.expr.split(function).skip(1)) {
            let window = call.split_once('[').unwrap().1.split(']').next().unwrap();
            assert!(!window.ends_with('d'), "{}", rule.expr);
            windows += 1;
        }
    }
    assert!(windows > 20, "{windows}");
}

#[test]
fn only_scrape_configuration_and_presence_rule_name_the_job() {
    let naming: Vec<_> = rules()
        .into_iter()
        .filter(|rule| rule.expr.contains(env!("CARGO_PKG_NAME")))
        .map(|rule| rule.alert.or(rule.record).unwrap_or_default())
        .collect();
    assert_eq!(naming, ["ServiceDown", "ServiceMetricsMissing"]);
    let scraped = fs::read_to_string(repository().join("prometheus/prometheus.yml")).unwrap();
    assert!(scraped.contains(&format!("job_name: {}\n", env!("CARGO_PKG_NAME"))));
}

#[test]
fn the_rules_pass_the_tests_of_promtool() {
    let Some(promtool) = tool("promtool") else { return };
    run(&promtool, "prometheus", &["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"]);
    for tests in files("prometheus/tests", "yml") {
        let printed = run(&promtool, "prometheus/tests", &["test", "rules", tests.to_str().unwrap()]);
        assert!(printed.contains("SUCCESS"), "{printed}");
    }
}

#[test]
fn the_collector_can_scrape_the_metrics_of_the_service() {
    let read = |path: &str| -> Value {
        yaml_serde::from_str(&fs::read_to_string(repository().join(path)).unwrap()).unwrap()
    };
    let (common, metrics) = (read("deploy/collector/collector.yml"), read("deploy/collector/metrics.yml"));
    let scraped = &metrics["receivers"]["prometheus"]["config"];
    let job = &scraped["scrape_configs"][0];
    let of_service = &read("prometheus/prometheus.yml")["scrape_configs"][0];
    assert_eq!(job["static_configs"], of_service["static_configs"]);
    let pipeline = &metrics["service"]["pipelines"]["metrics"];
    for (part, defined) in [("receivers", &metrics), ("processors", &common), ("exporters", &metrics)] {
        for name in pipeline[part].as_array().unwrap() {
            assert!(!defined[part][name.as_str().unwrap()].is_null(), "{part}: {name}");
        }
    }

    let Some(promtool) = tool("promtool") else { return };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("collector-scrape.json");
    fs::write(&file, scraped.to_string()).unwrap();
    run(&promtool, ".", &["check", "config", file.to_str().unwrap()]);
}

#[test]
fn the_rules_satisfy_pint() {
    let Some(pint) = tool("pint") else { return };
    let printed = run(&pint, "prometheus", &["--no-color", "--offline", "--log-level=WARN", "lint", "rules"]);
    assert_eq!(printed, "");
}

#[test]
fn every_file_that_the_stack_includes_or_mounts_exists() {
    let mut checked = 0;
    let mut unread = vec!["docker-compose.yml".to_owned()];
    while let Some(path) = unread.pop() {
        let text =
            fs::read_to_string(repository().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let stack: Value = yaml_serde::from_str(&text).unwrap();
        let included = stack["include"].as_array().into_iter().flatten();
        unread.extend(included.map(|path| path.as_str().unwrap().to_owned()));
        let services = stack["services"].as_object().into_iter().flat_map(|services| services.values());
        for service in services {
            for mount in service["volumes"].as_array().into_iter().flatten() {
                let source = mount.as_str().unwrap().split(':').next().unwrap();
                if source.starts_with('.') {
                    assert!(repository().join(source).exists(), "{path} mounts {source}");
                    checked += 1;
                }
            }
            for file in service["env_file"].as_array().into_iter().flatten() {
                let file = file.as_str().or(file["path"].as_str()).unwrap();
                let file = Path::new(&path).parent().unwrap().join(file);
                assert!(repository().join(&file).exists(), "{path} reads {}", file.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 8, "only {checked} mounts and environment files were checked");
}

#[test]
fn alerts_are_routed_by_their_severity() {
    let Some(amtool) = tool("amtool") else { return };
    run(&amtool, "prometheus", &["check-config", "alertmanager.yml"]);
    for (receiver, labels) in [
        ("page", ["alertname=HighErrorRate", "severity=critical"]),
        ("page", ["alertname=ServiceLatencyBudgetBurn", "severity=critical"]),
        ("ticket", ["alertname=SlowResponses", "severity=warning"]),
        ("heartbeat", ["alertname=Watchdog", "severity=none"]),
        ("none", ["alertname=Anything", "severity=info"]),
    ] {
        let verify = format!("--verify.receivers={receiver}");
        let mut arguments = vec!["config", "routes", "test", "--config.file=alertmanager.yml", &verify];
        arguments.extend(labels);
        run(&amtool, "prometheus", &arguments);
    }
}

#[test]
fn dashboards_are_formatted() {
    for (path, dashboard) in dashboards() {
        let formatted = serde_json::to_string_pretty(&dashboard).unwrap() + "\n";
        assert!(
            fs::read_to_string(&path).unwrap() == formatted,
            "{}: the keys must be sorted, and the indentation must be two spaces",
            path.display()
        );
    }
}

#[test]
fn dashboards_are_complete_and_cannot_be_edited_in_the_browser() {
    for (path, dashboard) in dashboards() {
        assert_eq!(dashboard["uid"], path.file_stem().unwrap().to_str().unwrap());
        assert_eq!(dashboard["editable"], false);
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
            let title = &panel["title"];
            assert!(filled(title) && filled(&panel["description"]), "{title}");
            assert!(filled(&panel["fieldConfig"]["defaults"]["unit"]), "{title}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
        }
    }
}

/// Returns the panels of all dashboards, without rows.
fn panels() -> Vec<Value> {
    let of_dashboard = |(_, dashboard): (PathBuf, Value)| dashboard["panels"].as_array().unwrap().clone();
    dashboards().into_iter().flat_map(of_dashboard).filter(|panel| panel["type"] != "row").collect()
}

#[test]
fn no_axis_mixes_seconds_with_numbers() {
    // A gauge in seconds is a duration. The rate of a counter in seconds has no unit: it is a number, for example of
    // busy threads. `changes` returns a number, too.
    let has_seconds = |target: &Value| {
        let query = target["expr"].as_str().unwrap();
        query.contains("_seconds{") && !query.contains("rate(") && !query.contains("changes(")
    };
    for panel in panels() {
        let targets = panel["targets"].as_array().unwrap();
        if targets.iter().all(has_seconds) || !targets.iter().any(has_seconds) {
            continue;
        }
        for target in targets.iter().filter(|target| has_seconds(target)) {
            let overrides = panel["fieldConfig"]["overrides"].as_array().unwrap();
            let own = overrides.iter().find(|entry| entry["matcher"]["options"] == target["legendFormat"]);
            let properties =
                own.unwrap_or_else(|| panic!("{} has no override", panel["title"]))["properties"].clone();
            assert!(
                properties.to_string().contains("\"right\""),
                "{}: the series in seconds needs the right axis",
                panel["title"]
            );
        }
    }
}

#[test]
fn links_between_signals_keep_the_time_range() {
    let mut links = 0;
    for panel in panels() {
        let explore = |link: &&Value| link["url"].as_str().is_some_and(|url| url.starts_with("/explore"));
        let defaults = &panel["fieldConfig"]["defaults"]["links"];
        for link in defaults.as_array().into_iter().flatten().filter(explore) {
            let url = link["url"].as_str().unwrap();
            assert!(url.contains("${__from}") && url.contains("${__to}"), "{}: {url}", panel["title"]);
            links += 1;
        }
    }
    assert!(links > 0);
    for (path, dashboard) in dashboards() {
        for link in dashboard["links"].as_array().unwrap().iter().filter(|link| link["type"] == "dashboards")
        {
            assert_eq!(link["keepTime"], true, "{}", path.display());
        }
    }
}

#[test]
fn the_parts_of_the_stack_have_panels() {
    let queries: Vec<_> = panels()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap().clone())
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    for prefix in ["pg_", "otelcol_", "loki_"] {
        assert!(queries.iter().any(|query| query.contains(prefix)), "{prefix}");
    }
}

#[test]
fn queries_of_dashboards_follow_the_variables() {
    for (_, dashboard) in dashboards() {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["datasource", "job", "instance"]);
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let recorded = query.contains("job:") && query.contains("{job=~\"$job\"}");
                let of_instances = query.contains("{job=~\"$job\", instance=~\"$instance\"");
                let of_alerts = query.contains("ALERTS{");
                assert!(recorded || of_instances || of_alerts, "{}: {query}", panel["title"]);
            }
        }
    }
}

/// The rules of Grafana's dashboard-linter about variables. No check runs the linter, because `.ci/tools` does not
/// build it. The tests of dashboards therefore mirror the linter's rules. `grafana/dashboards/.lint*` have the
/// exceptions for a manual run of the linter.
#[test]
fn dashboard_variables_follow_the_time_and_are_multi_value() {
    for (_, dashboard) in dashboards() {
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert_eq!(variables[0]["label"], "Data source");
        for (variable, label) in variables[1..].iter().zip(["Job", "Instance"]) {
            assert_eq!(variable["label"], label);
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{label}");
            assert_eq!(variable["refresh"], 2, "{label} must be refreshed when the time range changes");
            assert_eq!(
                (&variable["multi"], &variable["includeAll"]),
                (&true.into(), &true.into()),
                "{label}"
            );
            assert_eq!(variable["allValue"], ".+", "{label}");
        }
    }
}

#[test]
fn rates_of_dashboards_fit_the_width_of_the_panel() {
    for (_, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                for rate in query.split("rate(").skip(1) {
                    let window = rate.split_once('[').unwrap().1.split(']').next().unwrap();
                    assert_eq!(window, "$__rate_interval", "{}: {query}", panel["title"]);
                }
            }
        }
    }
}

#[test]
fn exclusions_of_the_linter_name_existing_panels() {
    let entries = fs::read_dir(repository().join("grafana/dashboards")).unwrap();
    let exclusions = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|found| found != "json"));
    let exclusions: Vec<Value> =
        exclusions.map(|path| yaml_serde::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect();
    assert!(!exclusions.is_empty());
    let dashboards = dashboards();
    let titles = |value: &Value| value["title"].as_str().unwrap().to_owned();
    for (rule, exclusion) in
        exclusions.iter().flat_map(|exclusions| exclusions["exclusions"].as_object().unwrap())
    {
        assert!(exclusion["reason"].is_string(), "{rule}");
        for entry in exclusion["entries"].as_array().unwrap() {
            let (_, dashboard) =
                dashboards.iter().find(|(_, dashboard)| dashboard["title"] == entry["dashboard"]).unwrap();
            let panels: Vec<_> = dashboard["panels"].as_array().unwrap().iter().map(titles).collect();
            if let Some(panel) = entry["panel"].as_str() {
                assert!(panels.iter().any(|title| title == panel), "{rule}: {panel}");
            }
        }
    }
}
