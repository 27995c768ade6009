//! What Kustomize makes of the overlays.
use std::collections::BTreeSet;

use super::{
    DIRECTORY, OVERLAYS, Objects, REPLICATED, only_container,
    schema::{check, documents},
    settings,
};
use crate::stack::{run, tool};

/// An installation as it is applied; nothing where Kustomize is not installed.
fn rendered(overlay: &str) -> Option<Objects> {
    let kustomize = tool("kustomize")?;
    let printed = run(&kustomize, DIRECTORY, &["build", &format!("overlays/{overlay}")]);
    Some(Objects(documents(&printed)))
}

#[test]
fn kustomize_makes_one_installation_of_each_overlay() {
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
        assert_eq!(only_container(&migration).image.as_ref(), Some(&image), "one release");
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
            assert_eq!(map["metadata"]["name"], from.name, "a changed setting rolls the pods");
            assert_ne!(from.name, "settings");
        }
    }
}

#[test]
fn pods_trust_the_certificate_authority_of_the_replicated_database() {
    let Some(objects) = rendered(REPLICATED) else { return };
    for pod in objects.pods() {
        let volumes = pod.volumes.clone().unwrap_or_default();
        let secrets: Vec<_> =
            volumes.iter().filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref()).collect();
        assert_eq!(secrets, ["database-ca"], "the operator's name for it");
        let mounts = only_container(&pod).volume_mounts.clone().unwrap_or_default();
        assert_eq!(mounts[0].mount_path, "/etc/database");
    }
}

#[test]
fn policies_reach_the_name_service_of_the_cluster() {
    let Some(objects) = rendered("production") else { return };
    let policies = objects.of_kind("NetworkPolicy");
    let database = policies.iter().find(|policy| policy["metadata"]["name"] == "database").unwrap();
    let names = &database["spec"]["egress"][1];
    assert_eq!(names["ports"][0]["port"], 53);
    assert!(names["to"][0]["podSelector"].is_null(), "our own labels would choose none of its pods");
}
