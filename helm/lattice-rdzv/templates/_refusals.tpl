{{/*
Values that cannot work together fail at render time. "lattice.refusals" is a table: for each refusal its condition and its text, which names
the value, what it must be, and how to fix it. tests/chart/test_refusals.py reads the names of the table and has a case for each. Its parts for
`engine: embedded`, the dashboard, and etcd's arguments are beside the templates of these. Two checks come before it, because its conditions need their
results: "lattice.refuseOldValues", and the version of etcd in _version.tpl.
*/}}

{{- define "lattice.refuse" -}}
{{- include "lattice.refuseOldValues" . -}}
{{- $table := ternary "lattice.embeddedRefusals" "lattice.refusals" (eq (include "lattice.embedded" .) "true") -}}
{{- if include "lattice.external" . -}}{{- $table = "lattice.externalRefusals" -}}{{- end -}}
{{- range $name, $refusal := include $table . | fromYaml -}}
{{- if eq $name "Error" -}}{{- fail $refusal -}}{{- end -}}
{{- if $refusal.when -}}{{- fail (trim $refusal.text) -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/*
`helm upgrade --reuse-values` replaces the chart's own values by those of the old chart, which do not have the new values. Every template
calls this first, because Helm may render any of them first.
*/}}
{{- define "lattice.refuseOldValues" -}}
{{- $missing := list -}}
{{- range $key := list "agents" "auth" "cluster" "dashboard" "defragmentation" "engine" "ephemeral" "etcd" "external" "metrics" "networkPolicy" "pdb" "persistence" "probes" "serviceAccount" "tests" "tls" -}}
{{- if not (hasKey $.Values $key) -}}{{- $missing = append $missing $key -}}{{- end -}}
{{- end -}}
{{- if $missing -}}
{{- fail (printf "values that this chart needs are missing in those of the installed chart, because `--reuse-values` does not add new ones; use `--reset-then-reuse-values` (Helm 3.14 or newer), or pass your own values with `--values`. Missing: `%s`" (join "`, `" $missing)) -}}
{{- end -}}
{{- end -}}

{{/* The refusals with `external.endpoints`. */}}
{{- define "lattice.externalRefusals" -}}
{{- $metrics := or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled .Values.metrics.prometheusRule.enabled -}}
{{- $scheme := printf "%s://" (include "lattice.clientScheme" .) -}}
{{- $others := list -}}
{{- range .Values.external.endpoints -}}
{{- if and (contains "://" .) (not (hasPrefix $scheme .)) -}}{{- $others = append $others . -}}{{- end -}}
{{- end -}}
external-with-own-etcd:
  when: {{ or (include "lattice.stateful" . | eq "true") .Values.auth.enabled .Values.networkPolicy.enabled (and $metrics (not .Values.dashboard.enabled)) }}
  text: >-
    with `external.endpoints` the chart does not run etcd, so `replicaCount`, `persistence.enabled`, `auth.enabled`, `networkPolicy.enabled`, and
    `metrics` (unless `dashboard.enabled` is set) have no effect; remove these values, or remove `external.endpoints`
external-with-engine:
  when: {{ ne .Values.engine "etcd" }}
  text: >-
    `engine` is `{{ .Values.engine }}`, but with `external.endpoints` the chart runs no server; remove one of the two
external-test-without-tls-secret:
  when: {{ and (ne .Values.agents.image "") .Values.tls.client.enabled (not .Values.tls.client.existingSecret) }}
  text: >-
    with `tls.client.enabled` the pods of `helm test` need a Secret with `tls.crt`, `tls.key`, and `ca.crt` in the namespace
    `{{ .Release.Namespace }}`; name it, for example --set tls.client.existingSecret=rdzv-client-tls, or remove `agents.image`
external-test-without-password:
  when: {{ and (ne .Values.agents.image "") (ne .Values.external.user "") (eq .Values.external.existingSecret "") }}
  text: >-
    with `external.user` the pods of `helm test` need a Secret in the namespace `{{ .Release.Namespace }}` with the password under the key
    `{{ .Values.external.user }}`; set `external.existingSecret`, or remove `agents.image`
external-scheme:
  when: {{ gt (len $others) 0 }}
  text: >-
    with `tls.client.enabled={{ .Values.tls.client.enabled }}` agents need endpoints that begin with `{{ $scheme }}`; change one of the two. In
    `external.endpoints` is: `{{ join "`, `" $others }}`
{{ include "lattice.monitoringRefusals" . }}
{{ include "lattice.dashboardRefusals" . }}
{{- end -}}

{{- define "lattice.refusals" -}}
{{- $values := .Values -}}
{{- $count := int $values.replicaCount -}}
{{- $several := include "lattice.several" . | eq "true" -}}
{{- $stateful := include "lattice.stateful" . | eq "true" -}}
{{- $inMemory := include "lattice.inMemory" . | eq "true" -}}
{{- $version := include "lattice.version" . -}}
{{- $spare := div (sub $count 1) 2 | int -}}
even-members:
  when: {{ and (gt $count 1) (eq (mod $count 2) 0) }}
  text: >-
    `replicaCount` must be 1, 3, or 5, but is {{ $count }}: an even number of etcd members does not tolerate more failures than the next smaller odd
    number. Example: --set replicaCount={{ min 5 (add1 $count) }} --set persistence.enabled=true
many-members:
  when: {{ and (gt $count 5) (eq (mod $count 2) 1) }}
  text: >-
    `replicaCount` must be 1, 3, or 5, but is {{ $count }}: 5 members tolerate the failure of 2, and each additional member makes every write slower
drain-takes-quorum:
  when: {{ and (has $count (list 3 5)) $values.pdb.enabled (gt (int $values.pdb.maxUnavailable) $spare) }}
  text: >-
    `pdb.maxUnavailable` must be at most {{ $spare }}, but is {{ int $values.pdb.maxUnavailable }}: {{ $count }} members keep a quorum only while no more than
    {{ $spare }} of them are missing
members-without-volumes:
  when: {{ and $several (not $values.persistence.enabled) }}
  text: >-
    `replicaCount` is {{ $count }}, but `persistence.enabled` is false: a member that lost its data cannot rejoin its cluster by itself. Add --set
    persistence.enabled=true, or set `replicaCount` to 1

volume-and-ephemeral:
  when: {{ and $values.persistence.enabled (or (ne $values.ephemeral.medium "") (ne ($values.ephemeral.sizeLimit | toString) "")) }}
  text: >-
    `persistence.enabled` and `ephemeral` exclude each other; remove one of them. `ephemeral.medium` is `{{ $values.ephemeral.medium }}`, and
    `ephemeral.sizeLimit` is `{{ $values.ephemeral.sizeLimit }}`
no-fsync-on-disk:
  when: {{ and (eq ($values.etcd.unsafeNoFsync | toString) "true") (not $inMemory) }}
  text: >-
    `etcd.unsafeNoFsync` is `true`, but the data is on a disk: after a reboot etcd could not read its log. Set it to `auto`, or add --set
    ephemeral.medium=Memory
revisions-that-are-a-time:
  {{- $retention := include "lattice.wholeNumber" $values.etcd.autoCompactionRetention }}
  {{- $isNumber := regexMatch "^[0-9]+$" $retention }}
  when: {{ and (eq $values.etcd.autoCompactionMode "revision") (not $isNumber) }}
  text: >-
    `etcd.autoCompactionMode` is `revision`, but `etcd.autoCompactionRetention` is `{{ $retention }}`, which etcd reads as a number of revisions so large that it
    would never compact. Set a number of revisions. Example: --set etcd.autoCompactionRetention=10000
time-without-unit:
  when: {{ and (eq $values.etcd.autoCompactionMode "periodic") (or (regexMatch "^[0-9]+[.][0-9]+$" $retention) (and $isNumber (gt (atoi $retention) 720))) }}
  text: >-
    `etcd.autoCompactionMode` is `periodic`, but `etcd.autoCompactionRetention` is `{{ $retention }}`; set a duration such as `90m`, or a whole number of
    hours up to 720, or add --set etcd.autoCompactionMode=revision
memory-limit-below-data:
  {{- $limit := (default dict (default dict $values.resources).limits).memory }}
  {{- $needed := include "lattice.ephemeralSize" . | default "0" }}
  when: {{ and $inMemory (ne (default "" $limit | toString) "") (le (include "lattice.bytes" (default "0" $limit) | int64) (include "lattice.bytes" $needed | int64)) }}
  text: >-
    `resources.limits.memory` must be above {{ include "lattice.bytes" $needed }} bytes, but is `{{ $limit }}`: data in memory counts against the limit, so the
    container would be killed before the database is full. Raise it, or lower `etcd.quotaBackendBytes` or `ephemeral.sizeLimit`
volume-below-quota:
  {{- $quota := include "lattice.quotaBytes" . }}
  {{- $volume := ternary (dict "key" "persistence.size" "size" $values.persistence.size) (dict "key" "ephemeral.sizeLimit" "size" $values.ephemeral.sizeLimit) $values.persistence.enabled }}
  when: {{ and (ne ($volume.size | toString) "") (lt (include "lattice.bytes" ($volume.size | default "0" | include "lattice.quantity") | int64) ($quota | int64)) }}
  text: >-
    `{{ $volume.key }}` is `{{ include "lattice.quantity" $volume.size }}`, but the quota of the database is {{ $quota }} bytes, so the volume would be full first. Use at least twice
    the quota plus 512 MiB, which leaves room for a defragmentation and the logs, or lower `etcd.quotaBackendBytes`
delete-claims-on-old-kubernetes:
  when: {{ and (eq $values.persistence.whenDeleted "Delete") (semverCompare "<1.27-0" .Capabilities.KubeVersion.Version) }}
  text: >-
    `persistence.whenDeleted` is `Delete`, but Kubernetes before 1.27 keeps the claims of a deleted StatefulSet (this one is
    {{ .Capabilities.KubeVersion.Version }}); set it to `Retain`

old-etcd:
  when: {{ semverCompare "<3.4.0" $version }}
  text: >-
    agents need etcd 3.4 or newer, but the version is `{{ $version }}`; change `image`, or `etcd.version` if that is wrong
v2-on-new-etcd:
  {{- $v2 := eq ($values.etcd.enableV2 | toString) "true" }}
  when: {{ and $v2 (semverCompare ">=3.6.0" $version) }}
  text: >-
    `etcd.enableV2` is `true`, but etcd 3.6 and newer have no v2 API and do not start with its flag; set it to `auto` or `false`, or use an image of
    etcd 3.5. `image` is: `{{ include "lattice.image" . }}`
v2-with-auth:
  when: {{ and $v2 $values.auth.enabled }}
  text: >-
    `etcd.enableV2` is `true`, but users of the v2 API are separate from those of v3, so that every client could write through v2; set it to `auto` or
    `false`, or remove `auth.enabled`
v2-on-volume:
  when: {{ and $v2 $stateful (not $values.auth.enabled) }}
  text: >-
    `etcd.enableV2` is `true`, but etcd 3.6 does not start on a volume with v2 data, so this etcd could never be upgraded; set it to `auto` or `false`,
    or remove `persistence.enabled`

mtls-with-plain-peers:
  when: {{ and $several $values.tls.client.enabled (not $values.tls.peer.enabled) (semverCompare "<3.6.0" $version) }}
  text: >-
    `tls.client.enabled` does not protect several members while `tls.peer.enabled` is false: up to 3.5 etcd serves the client API on the peer port too, and
    requires no certificate there. For a new cluster, add --set tls.peer.enabled=true with `tls.peer.existingSecret`. For a running one, use an image of
    etcd 3.6 or newer, which does not serve clients there, or recreate the cluster with TLS between peers (UPGRADING.md). The version is: `{{ $version }}`
auth-on-ephemeral:
  when: {{ and $values.auth.enabled (not $values.persistence.enabled) }}
  text: >-
    `auth.enabled` needs `persistence.enabled`: users and passwords are part of the data, so each new pod would accept every client. Add --set
    persistence.enabled=true, or use client certificates instead: --set tls.client.enabled=true with `tls.client.requireClientCert` and
    `tls.client.existingSecret`
container-ports:
  {{- $ports := list (int $values.clientService.internalPort) (int $values.serverService.clientPort.internalPort) | uniq }}
  {{- $ports = concat $ports (list (int $values.serverService.serverPort.internalPort) (int $values.etcd.metricsPort)) }}
  {{- if $values.auth.enabled }}{{ $ports = concat $ports (list (int $values.auth.port) (int $values.auth.loopbackPort)) }}{{ end }}
  when: {{ ne (len $ports) (len (uniq $ports)) }}
  text: >-
    `clientService.internalPort`, `serverService.clientPort.internalPort`, `serverService.serverPort.internalPort`, `etcd.metricsPort`, `auth.port`, and
    `auth.loopbackPort` must differ (except the first two). In this order they are: {{ join ", " $ports }}
server-ports:
  when: {{ eq (int $values.serverService.clientPort.externalPort) (int $values.serverService.serverPort.externalPort) }}
  text: >-
    `serverService.clientPort.externalPort` and `serverService.serverPort.externalPort` must differ. Both are:
    {{ int $values.serverService.serverPort.externalPort }}
serverService-plain-peers:
  when: {{ and $several (ne $values.serverService.type "ClusterIP") (not $values.serverService.allowUnauthenticated) (include "lattice.closed" . | eq "true") (not $values.tls.peer.enabled) }}
  text: >-
    `serverService.type` is `{{ $values.serverService.type }}`, which publishes the peer port, which client certificates and passwords do not protect. Set the
    type to `ClusterIP`, or add --set tls.peer.enabled=true with `tls.peer.existingSecret`. If only trusted clients can reach it, add --set
    serverService.allowUnauthenticated=true
{{ include "lattice.argumentRefusals" . }}
{{ include "lattice.sharedRefusals" . }}
{{ include "lattice.liveRefusals" . }}
{{- end -}}

{{/* With every engine and with an external etcd. */}}
{{- define "lattice.monitoringRefusals" -}}
{{- $metrics := .Values.metrics -}}
two-monitors:
  when: {{ and $metrics.serviceMonitor.enabled $metrics.podMonitor.enabled }}
  text: >-
    `metrics.serviceMonitor.enabled` and `metrics.podMonitor.enabled` would scrape each pod twice; remove one of them
alerts-without-metrics:
  when: {{ and $metrics.prometheusRule.enabled (not (or $metrics.serviceMonitor.enabled $metrics.podMonitor.enabled)) (or .Values.dashboard.enabled (not .Values.external.endpoints)) }}
  text: >-
    `metrics.prometheusRule.enabled` needs the metrics that its alerts evaluate; add --set metrics.serviceMonitor.enabled=true, or remove it
{{- end -}}

{{/* With every engine. */}}
{{- define "lattice.sharedRefusals" -}}
{{- $values := .Values -}}
{{- $auth := $values.auth -}}
{{- $first := first $auth.users -}}
external-user-without-endpoints:
  when: {{ or (ne .Values.external.user "") (ne .Values.external.existingSecret "") }}
  text: >-
    `external.user` and `external.existingSecret` are for your own etcd, but `external.endpoints` is empty; set it, or use `auth.users`
{{ range $side := list "client" "peer" }}
{{- $tls := index $values.tls $side }}
{{ $side }}-tls-without-secret:
  when: {{ and $tls.enabled (not (or $tls.existingSecret $tls.issuerRef)) }}
  text: >-
    `tls.{{ $side }}.enabled` needs a Secret with `tls.crt`, `tls.key`, and `ca.crt` in the namespace `{{ $.Release.Namespace }}`, but
    `tls.{{ $side }}.existingSecret` is empty. Example: --set tls.{{ $side }}.existingSecret=rdzv-{{ $side }}-tls. With cert-manager, set
    `tls.{{ $side }}.issuerRef` instead
{{ $side }}-secret-and-issuer:
  when: {{ and (ne $tls.existingSecret "") (gt (len (default dict $tls.issuerRef)) 0) }}
  text: >-
    `tls.{{ $side }}.existingSecret` and `tls.{{ $side }}.issuerRef` exclude each other; remove one of them
{{ $side }}-issuer-without-tls:
  when: {{ and (not $tls.enabled) (gt (len (default dict $tls.issuerRef)) 0) }}
  text: >-
    `tls.{{ $side }}.issuerRef` is set, but TLS is off; add --set tls.{{ $side }}.enabled=true, or remove the issuer
{{ $side }}-secret-without-tls:
  when: {{ and (not $tls.enabled) (ne $tls.existingSecret "") }}
  text: >-
    `tls.{{ $side }}.existingSecret` is `{{ $tls.existingSecret }}`, but TLS is off; add --set tls.{{ $side }}.enabled=true, or remove the name
{{ end }}
ca-without-tls:
  when: {{ and (not $values.tls.client.enabled) (ne $values.tls.client.caCertificate "") }}
  text: >-
    `tls.client.caCertificate` is set, but TLS is off; add --set tls.client.enabled=true, or remove the certificate

auth-without-secret:
  when: {{ and $auth.enabled (not $auth.existingSecret) }}
  text: >-
    `auth.enabled` needs a Secret with the key `root-password` and one key for each of `auth.users`, but `auth.existingSecret` is empty. Example: --set
    auth.existingSecret=rdzv-auth
secret-without-auth:
  when: {{ and (not $auth.enabled) (ne $auth.existingSecret "") }}
  text: >-
    `auth.existingSecret` is `{{ $auth.existingSecret }}`, but authentication is off; add --set auth.enabled=true, or remove the name
user-twice:
  {{- $names := list }}
  {{- $twice := list }}
  {{- range $auth.users }}
  {{- if has .name $names }}{{ $twice = append $twice .name }}{{ end }}
  {{- $names = append $names .name }}
  {{- end }}
  when: {{ and $auth.enabled (gt (len $twice) 0) }}
  text: >-
    `auth.users` must name each user once, but repeats: `{{ join "`, `" $twice }}`
tenant-of-another-user:
  when: {{ and $auth.enabled (ne (default "" $first.tenant) "") (ne $values.agents.tenant "") (ne (default "" $first.tenant) $values.agents.tenant) }}
  text: >-
    agents use the first of `auth.users`, which can access only the tenant `{{ $first.tenant }}`, but `agents.tenant` is `{{ $values.agents.tenant }}`; make
    the two equal, or put another user first
tenant-of-namespace-without-right:
  {{- $tenants := include "lattice.tenants" . | fromYaml }}
  {{- $denied := list }}
  {{- range $values.agents.namespaces }}
  {{- if kindIs "map" . }}
  {{- $right := get $tenants (default $first.name .user) }}
  {{- if and $right .tenant (ne $right .tenant) }}{{ $denied = append $denied .name }}{{ end }}
  {{- end }}
  {{- end }}
  when: {{ and $auth.enabled (gt (len $denied) 0) }}
  text: >-
    a `tenant` in `agents.namespaces` must be the tenant of the user there, who can access no other. Remove `tenant`, or name another `user`, for: `{{ join
    "`, `" $denied }}`
unknown-user-of-namespace:
  {{- $known := list }}
  {{- $unknown := list }}
  {{- range $auth.users }}{{ $known = append $known .name }}{{ end }}
  {{- range $values.agents.namespaces }}
  {{- if kindIs "map" . }}
  {{- if and .user (not (has .user $known)) }}{{ $unknown = append $unknown .user }}{{ end }}
  {{- end }}
  {{- end }}
  when: {{ gt (len $unknown) 0 }}
  text: >-
    each user in `agents.namespaces` must be one of `auth.users`, which has no `{{ join "`, `" $unknown }}`
user-of-namespace-without-auth:
  {{- $users := list }}
  {{- range $values.agents.namespaces }}{{ if kindIs "map" . }}{{ with .user }}{{ $users = append $users . }}{{ end }}{{ end }}{{ end }}
  when: {{ and (not $auth.enabled) (gt (len $users) 0) }}
  text: >-
    `agents.namespaces` names users, but authentication is off; add --set auth.enabled=true, or remove the users

service-names:
  {{- $services := list $values.clientService.name $values.serverService.name (include "lattice.membersService" .) (include "lattice.metricsService" .) (include "lattice.dashboardName" .) (include "lattice.dashboardMetricsService" .) }}
  when: {{ ne (len $services) (len (uniq $services)) }}
  text: >-
    two Services would have one name; change `clientService.name` or `serverService.name`. The names are: `{{ join "`, `" $services }}`
{{ $closed := include "lattice.closed" . | eq "true" }}
{{- range $key := list "clientService" "serverService" }}
{{- $service := index $values $key }}
{{- $published := and (ne $service.type "ClusterIP") (not $service.allowUnauthenticated) }}
{{- $nodePorts := list }}
{{- range $path, $port := dict "nodePort" $service.nodePort "clientPort.nodePort" (default dict $service.clientPort).nodePort "serverPort.nodePort" (default dict $service.serverPort).nodePort }}
{{- if $port }}{{ $nodePorts = append $nodePorts (printf "`%s.%s` is: %d" $key $path (int $port)) }}{{ end }}
{{- end }}
{{ $key }}-node-port:
  when: {{ and (eq $service.type "ClusterIP") (gt (len $nodePorts) 0) }}
  text: >-
    a Service of type `ClusterIP` has no node port; add --set {{ $key }}.type=NodePort, or remove the port. {{ join ", " $nodePorts }}
{{ $key }}-open:
  when: {{ and $published (not $closed) }}
  text: >-
    `{{ $key }}.type` is `{{ $service.type }}`, but every client that reaches etcd can write to it and change every job. Set the type to `ClusterIP`, or
    add --set tls.client.enabled=true with `tls.client.existingSecret` and `tls.client.requireClientCert` or `auth.enabled`. If only trusted
    clients can reach it, add --set {{ $key }}.allowUnauthenticated=true
{{ $key }}-plain-passwords:
  when: {{ and $published $closed (not $values.tls.client.enabled) }}
  text: >-
    `{{ $key }}.type` is `{{ $service.type }}`, and without TLS it sends passwords unencrypted. Set the type to `ClusterIP`, or add --set
    tls.client.enabled=true with `tls.client.existingSecret`. If no untrusted client can intercept the traffic, add --set {{ $key }}.allowUnauthenticated=true
{{ include "lattice.serviceRefusals" (dict "key" $key "service" $service) }}
{{ end }}

{{ include "lattice.monitoringRefusals" . }}
{{ include "lattice.dashboardRefusals" . }}
policy-without-namespace-names:
  {{- $namespaces := list }}
  {{- range rest (include "lattice.agentNamespaces" . | fromYamlArray) }}{{ $namespaces = append $namespaces .name }}{{ end }}
  when: {{ and $values.networkPolicy.enabled (gt (len $namespaces) 0) (not $values.networkPolicy.agentNamespaceSelector) (semverCompare "<1.21-0" .Capabilities.KubeVersion.Version) }}
  text: >-
    before Kubernetes 1.21 (this one is {{ .Capabilities.KubeVersion.Version }}) a namespace has no label with its name; label the namespaces of agents and
    set `networkPolicy.agentNamespaceSelector`. `agents.namespaces` is: `{{ join "`, `" $namespaces }}`
policy-without-prometheus:
  when: {{ and $values.networkPolicy.enabled (or $values.metrics.serviceMonitor.enabled $values.metrics.podMonitor.enabled) (not $values.networkPolicy.metricsNamespaceSelector) }}
  text: >-
    `networkPolicy.enabled` blocks Prometheus unless `networkPolicy.metricsNamespaceSelector` selects its namespace, and the alerts would fire forever.
    Example: --set networkPolicy.metricsNamespaceSelector.matchLabels."kubernetes\.io/metadata\.name"=monitoring
policy-without-ip-blocks:
  when: {{ and $values.networkPolicy.enabled (or (ne $values.clientService.type "ClusterIP") (ne $values.serverService.type "ClusterIP")) (not $values.networkPolicy.ipBlocks) }}
  text: >-
    `networkPolicy.enabled` blocks all clients from outside of the cluster, but a Service of type `NodePort` or `LoadBalancer` is meant for them; set
    `networkPolicy.ipBlocks` to their addresses, and `externalTrafficPolicy` to `Local`, or the policy sees the addresses of Kubernetes nodes. Example: --set networkPolicy.ipBlocks[0].cidr=10.0.0.0/8
{{- end -}}

{{/*
Changes of a running StatefulSet that the API server would reject with a message about an immutable field (see "lattice.memberSelector").
If Helm can look up the StatefulSet, these refusals explain the reason.
*/}}
{{- define "lattice.liveRefusals" -}}
{{- $live := dict -}}
{{- if and (include "lattice.stateful" .) (not .Values.cluster.allowRecreate) -}}
{{- $live = lookup "apps/v1" "StatefulSet" .Release.Namespace (include "lattice.name" .) -}}
{{- end -}}
{{- $labels := dict -}}
{{- if $live -}}{{- $labels = $live.spec.selector.matchLabels -}}{{- end -}}
{{- $wanted := include "lattice.memberSelector" . | fromYaml -}}
{{- $again := printf "To create a new, empty cluster: kubectl delete statefulset,pvc -n %s -l app=%s, then helm upgrade with --set cluster.allowRecreate=true and another `cluster.token`" .Release.Namespace (include "lattice.name" .) -}}
live-members:
  when: {{ and (gt (len $labels) 0) (ne (get $labels "lattice-rdzv/store") (get $wanted "lattice-rdzv/store")) }}
  text: >-
    `replicaCount` is {{ int .Values.replicaCount }}, but the running StatefulSet is `{{ get $labels "lattice-rdzv/store" }}`: etcd does not apply a
    changed number of members. Keep `replicaCount`. {{ $again }}
live-peers:
  when: {{ and (gt (len $labels) 0) (ne (get $labels "lattice-rdzv/peers") (get $wanted "lattice-rdzv/peers" | default "")) }}
  text: >-
    the members of the running cluster use other peer URLs, and etcd does not apply a changed flag: members that are replaced one by one would
    lose each other. Keep `tls.peer.enabled`, `serverService.serverPort.internalPort`, and `clusterDomain`. {{ $again }}
{{- end -}}
