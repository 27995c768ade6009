//! The overlays as rendered by Kustomize.
use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{
    DIRECTORY, OVERLAYS, Objects, REPLICATED, only_container,
    schema::{AlertmanagerConfig, Matcher, check, documents, typed},
    settings,
};
use crate::stack::{repository, run, tool};

/// Returns the objects of a rendered overlay, or `None` if Kustomize is not installed.
fn rendered(overlay: &str) -> Option<Objects> {
    let kustomize = tool("kustomize")?;
    let printed = run(&kustomize, DIRECTORY, &["build", &format!("overlays/{overlay}")]);
    Some(Objects(documents(&printed)))
}

#[test]
fn kustomize_renders_valid_objects_for_each_overlay() {
    for (overlay, kinds_of_overlay) in
        OVERLAYS.map(|overlay| (overlay, 9)).into_iter().chain([(REPLICATED, 10)])
    {
        let Some(objects) = rendered(overlay) else { return };
        let mut kinds = BTreeSet::new();
        for object in &objects.0 {
            check(object);
            kinds.insert(object["kind"].as_str().unwrap());
            assert_eq!(object["metadata"]["namespace"], env!("CARGO_PKG_NAME"), "{object:#}");
            assert_eq!(
                object["metadata"]["labels"]["app.kubernetes.io/name"],
                env!("CARGO_PKG_NAME"),
                "{object:#}"
            );
        }
        assert_eq!(kinds.len(), kinds_of_overlay, "{kinds:?}");

        let [service, migration] = objects.pods();
        let image = only_container(&service).image.clone().unwrap();
        assert!(image.contains('/') && image.contains(':'), "{image}");
        assert_eq!(
            only_container(&migration).image.as_ref(),
            Some(&image),
            "the pods must have the same image"
        );
    }
}

#[test]
fn the_pods_get_the_settings_of_their_overlay() {
    for overlay in OVERLAYS {
        let Some(objects) = rendered(overlay) else { return };
        let map = objects.of_kind("ConfigMap")[0];
        let given = map["data"].as_object().unwrap();
        let expected = settings(overlay);
        assert_eq!(given.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(given[&name], value, "{name}");
        }
        for pod in objects.pods() {
            let from = only_container(&pod).env_from.as_ref().unwrap()[0].config_map_ref.as_ref().unwrap();
            assert_eq!(map["metadata"]["name"], from.name, "the pods must use the generated ConfigMap");
            assert_ne!(from.name, "settings", "the name must have a hash of the settings");
        }
    }
}

/// Returns the strings of a list in `alertmanager.yml`, such as the matchers of a route.
fn matchers(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|matcher| matcher.as_str().unwrap().to_owned()).collect()
}

fn texts(matchers: &[Matcher]) -> Vec<String> {
    matchers.iter().map(Matcher::text).collect()
}

#[test]
fn the_overlay_of_the_stack_routes_alerts_like_the_demo() {
    let Some(objects) = rendered("kube-prometheus-stack") else { return };
    objects.0.iter().for_each(check);
    for kind in ["ServiceMonitor", "AlertmanagerConfig"] {
        let object = objects.of_kind(kind)[0];
        assert_eq!(object["metadata"]["labels"]["release"], "kube-prometheus-stack", "{kind}");
    }
    let routing = typed::<AlertmanagerConfig>(objects.of_kind("AlertmanagerConfig")[0]).spec;
    let path = repository().join("prometheus/alertmanager.yml");
    let demo = documents(&fs::read_to_string(path).unwrap()).remove(0);

    // The comparison excludes the route and the receiver of the heartbeat, and the inhibitions about alerts of the
    // demo's monitoring stack. The monitoring stack of a cluster has its own heartbeat and inhibitions.
    let routes: Vec<_> = demo["route"]["routes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|route| route["receiver"] != "heartbeat")
        .map(|route| {
            let text = |key: &str| route[key].as_str().map(str::to_owned);
            (
                matchers(&route["matchers"]),
                text("receiver").unwrap(),
                text("group_wait"),
                text("repeat_interval"),
            )
        })
        .collect();
    let rendered = routing.route.routes.iter().map(|route| {
        (
            texts(&route.matchers),
            route.receiver.clone(),
            route.group_wait.clone(),
            route.repeat_interval.clone(),
        )
    });
    let rendered: Vec<_> = rendered.collect();
    assert_eq!(rendered, routes);
    let of_the_stack = |matchers: &[String]| {
        ["TargetDown", "LogStorageFull", "TelemetryExportFailing"]
            .iter()
            .any(|name| matchers.iter().any(|matcher| matcher.contains(&format!("\"{name}\""))))
    };
    let inhibitions: Vec<_> = demo["inhibit_rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            (matchers(&rule["source_matchers"]), matchers(&rule["target_matchers"]), matchers(&rule["equal"]))
        })
        .filter(|(source, target, _)| !of_the_stack(source) && !of_the_stack(target))
        .collect();
    let rendered: Vec<_> = routing
        .inhibit_rules
        .iter()
        .map(|rule| (texts(&rule.source_match), texts(&rule.target_match), rule.equal.clone()))
        .collect();
    assert_eq!(rendered, inhibitions);
    let receivers: Vec<_> = routing.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
    assert_eq!(receivers, ["page", "ticket", "none"]);
}

#[test]
fn pods_trust_the_authority_of_the_replicated_database() {
    let Some(objects) = rendered(REPLICATED) else { return };
    for pod in objects.pods() {
        let volumes = pod.volumes.clone().unwrap_or_default();
        let secrets: Vec<_> =
            volumes.iter().filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref()).collect();
        assert_eq!(secrets, ["database-ca"], "the pods must mount this Secret, which CloudNativePG creates");
        let mounts = only_container(&pod).volume_mounts.clone().unwrap_or_default();
        assert_eq!(mounts[0].mount_path, "/etc/database");
    }
}

#[test]
fn the_policies_allow_queries_to_the_clusters_dns() {
    let Some(objects) = rendered("production") else { return };
    let policies = objects.of_kind("NetworkPolicy");
    let database = policies.iter().find(|policy| policy["metadata"]["name"] == "database").unwrap();
    let names = &database["spec"]["egress"][1];
    assert_eq!(names["ports"][0]["port"], 53);
    assert!(
        names["to"][0]["podSelector"].is_null(),
        "Kustomize would add the labels of the service to this selector, which would then select no DNS pod"
    );
    assert_eq!(names["to"][1]["ipBlock"]["cidr"], "169.254.20.10/32", "NodeLocal DNSCache");
    let policies = serde_json::to_string(&policies).unwrap();
    assert!(!policies.contains("ingress-nginx"), "ingress-nginx is no longer maintained");
}
