#!/bin/sh
# Writes base/rules: the files of prometheus/rules as PrometheusRule objects. Run it when a rule has changed; a test fails
# until it was. In a cluster runbooks and dashboards have other addresses than in the demo: yours stand here.
set -eu
runbooks=https://runbooks.example.com/
dashboards=https://grafana.example.com/d/

cd "$(dirname "$0")"
rules=../../prometheus/rules
target=${1:-base/rules}
mkdir -p "$target"
rm -f "$target"/*.yaml

{
  echo '# Made by rules.sh.'
  echo 'apiVersion: kustomize.config.k8s.io/v1beta1'
  echo 'kind: Kustomization'
  echo
  echo 'resources:'
} >"$target/kustomization.yaml"
for file in "$rules"/*.yml; do
  name=$(basename "$file" .yml)
  echo "  - $name.yaml" >>"$target/kustomization.yaml"
  {
    echo "# Made from prometheus/rules/$name.yml by rules.sh."
    echo 'apiVersion: monitoring.coreos.com/v1'
    echo 'kind: PrometheusRule'
    echo 'metadata:'
    echo "  name: $name"
    echo 'spec:'
    sed -e 's/^\(..*\)$/  \1/' \
      -e "s|http://localhost:8025/runbooks/|$runbooks|" \
      -e "s|http://localhost:3000/d/|$dashboards|" "$file"
  } >"$target/$name.yaml"
done
