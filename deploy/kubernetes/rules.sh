#!/bin/sh
# Prints the files of prometheus/rules as PrometheusRule objects: `deploy/kubernetes/rules.sh | kubectl apply …` (README.md).
# Kustomize cannot make them: it has no generator for objects of this kind, and the files are not Kubernetes objects.
#
# In a cluster, runbooks and dashboards have other addresses than in the demo. Set yours here, or in the environment.
set -eu
runbooks=${RUNBOOKS_URL:-https://runbooks.example.com/}
dashboards=${DASHBOARDS_URL:-https://grafana.example.com/d/}

cd "$(dirname "$0")/../../prometheus/rules"
for file in *.yml; do
  echo '---'
  echo 'apiVersion: monitoring.coreos.com/v1'
  echo 'kind: PrometheusRule'
  echo 'metadata:'
  echo "  name: ${file%.yml}"
  echo '  labels:'
  # Removes what a release without this rule file has left behind: `kubectl apply --prune --selector`.
  echo '    app.kubernetes.io/component: rules'
  echo 'spec:'
  sed -e 's/^\(..*\)$/  \1/' \
    -e "s|http://localhost:8025/runbooks/|$runbooks|" \
    -e "s|http://localhost:3000/d/|$dashboards|" "$file"
done
