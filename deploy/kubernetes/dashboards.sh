#!/bin/sh
# Prints the dashboards as ConfigMaps for Grafana's sidecar, which loads every ConfigMap with the label `grafana_dashboard`:
# `deploy/kubernetes/dashboards.sh | kubectl apply --server-side …` (README.md). Kustomize cannot generate them, because it
# reads no file outside of its own directory.
#
# ALERTS_URL in the environment: the URL of Alertmanager, to which the dashboards link.
set -eu
cd "$(dirname "$0")/../../grafana/dashboards"
for file in *.json; do
  echo '---'
  echo 'apiVersion: v1'
  echo 'kind: ConfigMap'
  echo 'metadata:'
  echo "  name: dashboard-${file%.json}"
  echo '  labels:'
  echo '    app.kubernetes.io/component: dashboards'
  echo '    grafana_dashboard: "1"'
  echo 'data:'
  echo "  $file: |"
  sed -e 's/^\(..*\)$/    \1/' -e "s|http://localhost:8025|${ALERTS_URL:-https://alertmanager.example.com}|" "$file"
done
