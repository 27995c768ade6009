#!/bin/sh
# Prints the files of prometheus/rules as PrometheusRule objects: `deploy/kubernetes/rules.sh | kubectl apply …`
# (README.md). Kustomize cannot generate these objects, because it has no generator for this kind, and the files are not
# Kubernetes objects.
#
# A cluster's Prometheus also scrapes other services, whose series have the same names. Each selector therefore gets the
# job of this service, except `pg_up`, which gets the job of the PostgreSQL exporter. Each alert gets the namespace of
# this service, because an AlertmanagerConfig selects alerts by namespace. The rules about the monitoring stack itself
# (monitoring.yml) are left out, because the cluster's monitoring stack has its own.
#
# Environment:
#   RUNBOOKS_URL, DASHBOARDS_URL  addresses of runbooks and dashboards, in place of those of docker-compose.yml
#   DATABASE_JOB                  job of the PostgreSQL exporter of this service's database (default: postgres). Without
#                                 such an exporter, the service's own connection timeouts decide whether DatabaseDown
#                                 fires.
#   LABEL                         label by which the cluster's Prometheus selects rules, such as release=kube-prometheus-stack
set -eu
runbooks=${RUNBOOKS_URL:-https://runbooks.example.com/}
dashboards=${DASHBOARDS_URL:-https://grafana.example.com/d/}

cd "$(dirname "$0")"
job=$(sed -n 's|^ *app.kubernetes.io/name: ||p' base/kustomization.yaml)
namespace=$(sed -n 's|^namespace: ||p' base/kustomization.yaml)

# scope FILE: prints a rule file. Adds the job to every selector that has none and to recorded constants, and the namespace to
# alerts.
scope() {
  awk -v job="$job" -v database="${DATABASE_JOB:-postgres}" -v namespace="$namespace" '
    BEGIN {
      n = split("and or unless bool offset by without on ignoring group_left group_right sum min max avg count", words, " ")
      for (i = 1; i <= n; i++) keyword[words[i]] = 1
      n = split("by without on ignoring group_left group_right", words, " ")
      for (i = 1; i <= n; i++) grouping[words[i]] = 1
    }
    function matcher(metric) { return "job=\"" (metric == "pg_up" ? database : job) "\"" }
    function scoped(text,    out, token) {
      out = ""
      while (text != "") {
        if (match(text, /^[a-zA-Z_:][a-zA-Z0-9_:]*/)) {
          token = substr(text, 1, RLENGTH)
          text = substr(text, RLENGTH + 1)
          out = out token
          if (token in grouping) {
            # The names of labels, in parentheses, stay as they are, because they are no metrics.
            if (match(text, /^ *\([^)]*\)/)) { out = out substr(text, 1, RLENGTH); text = substr(text, RLENGTH + 1) }
          } else if (token in keyword || text ~ /^ *\(/) {
            continue
          } else if (match(text, /^[{]([^}"]|"[^"]*")*[}]/)) {
            token = matcher(token)
            if (substr(text, 1, RLENGTH) ~ /[{, ]job=/) token = ""
            out = out "{" token (token == "" || text ~ /^[{][}]/ ? "" : ", ") substr(text, 2, RLENGTH - 1)
            text = substr(text, RLENGTH + 1)
          } else {
            out = out "{" matcher(token) "}"
          }
        } else if (match(text, /^("[^"]*"|\[[^\]]*\]|[0-9][0-9a-zA-Z.]*|.)/)) {
          # Strings, windows, numbers and operators stay as they are.
          out = out substr(text, 1, RLENGTH)
          text = substr(text, RLENGTH + 1)
        }
      }
      return out
    }
    function indentation(line) { match(line, /^ */); return RLENGTH }
    block && $0 != "" && indentation($0) <= block { block = 0 }
    block { print scoped($0); next }
    /^ *- (alert|record):/ { alert = /alert:/; constant = 0 }
    /^ *expr: / {
      constant = /expr: vector\(/
      if (/expr: \|/) { block = indentation($0); print; next }
      match($0, /^ *expr: /)
      print substr($0, 1, RLENGTH) scoped(substr($0, RLENGTH + 1))
      next
    }
    { print }
    # Adds the namespace to the labels of alerts, and the job to the labels of recorded constants: a constant has no selector.
    /^ *labels:/ && alert { printf "%*snamespace: %s\n", indentation($0) + 2, "", namespace }
    /^ *labels:/ && !alert && constant { printf "%*sjob: %s\n", indentation($0) + 2, "", job }
  ' "$1"
}

for file in ../../prometheus/rules/*.yml; do
  name=$(basename "$file" .yml)
  [ "$name" != monitoring ] || continue
  echo '---'
  echo 'apiVersion: monitoring.coreos.com/v1'
  echo 'kind: PrometheusRule'
  echo 'metadata:'
  echo "  name: $name"
  echo '  labels:'
  # With this label, `kubectl apply --prune --selector` removes the objects of rule files that a release no longer has.
  echo '    app.kubernetes.io/component: rules'
  [ -z "${LABEL:-}" ] || echo "    ${LABEL%%=*}: ${LABEL#*=}"
  echo 'spec:'
  scope "$file" | sed -e 's/^\(..*\)$/  \1/' \
    -e "s|http://localhost:8025/runbooks/|$runbooks|" \
    -e "s|http://localhost:3000/d/|$dashboards|"
done
