{{/*
What cannot work fails while it is rendered, and says which value to change. Each message: what is wrong, what to do,
and last the value. What a render cannot see (how many members a live store has) the API server refuses.
*/}}

{{- define "lattice.refuse" -}}
{{- if include "lattice.external" . -}}
{{- include "lattice.refuseExternal" . -}}
{{- else -}}
{{- include "lattice.refuseMembers" . -}}
{{- include "lattice.refuseStorage" . -}}
{{- include "lattice.refuseVersion" . -}}
{{- include "lattice.refuseTLS" (list . "client") -}}
{{- include "lattice.refuseTLS" (list . "peer") -}}
{{- include "lattice.refuseAuth" . -}}
{{- include "lattice.refuseNames" . -}}
{{- include "lattice.refusePorts" . -}}
{{- include "lattice.refuseExposure" (list . "clientService" .Values.clientService) -}}
{{- include "lattice.refuseExposure" (list . "serverService" .Values.serverService) -}}
{{- include "lattice.refuseOperations" . -}}
{{- include "lattice.refuseLiveChange" . -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseExternal" -}}
{{- $metrics := or .Values.metrics.serviceMonitor.enabled .Values.metrics.prometheusRule.enabled -}}
{{- if or (include "lattice.stateful" .) .Values.auth.enabled .Values.networkPolicy.enabled $metrics -}}
{{- fail "with `external.endpoints` the chart makes no store, so `replicaCount`, `persistence.enabled`, `auth.enabled`, `networkPolicy.enabled` and `metrics` have nothing to act on; leave them out, or leave out `external.endpoints`" -}}
{{- end -}}
{{- if .Values.agents.image -}}{{- include "lattice.refuseTLS" (list . "client") -}}{{- end -}}
{{- $scheme := printf "%s://" (include "lattice.clientScheme" .) -}}
{{- range .Values.external.endpoints -}}
{{- if and (contains "://" .) (not (hasPrefix $scheme .)) -}}
{{- fail (printf "with `tls.client.enabled=%t` agents need endpoints that begin with `%s`; change either of them. In `external.endpoints` stands: `%s`" $.Values.tls.client.enabled $scheme .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseMembers" -}}
{{- $count := int .Values.replicaCount -}}
{{- if and (gt $count 1) (eq (mod $count 2) 0) -}}
{{- fail (printf "an even number of etcd members can lose no more of them than one less can; take %d, for example --set replicaCount=%d --set persistence.enabled=true. `replicaCount` is: %d" (add1 $count) (add1 $count) $count) -}}
{{- end -}}
{{- if gt $count 5 -}}
{{- fail (printf "more than 5 members make every write slower and bear no more than 2 losses better; take 1, 3 or 5. `replicaCount` is: %d" $count) -}}
{{- end -}}
{{- $spare := div (sub $count 1) 2 | int -}}
{{- if and (gt $count 1) .Values.pdb.enabled (gt (int .Values.pdb.maxUnavailable) $spare) -}}
{{- fail (printf "of %d members %d may be missing at once, and a drain that takes more stops the store; lower the value. `pdb.maxUnavailable` is: %d" $count $spare (int .Values.pdb.maxUnavailable)) -}}
{{- end -}}
{{- if and (gt $count 1) (not .Values.persistence.enabled) -}}
{{- fail (printf "several members need volumes, because one that lost its data cannot come back into its cluster by itself; add --set persistence.enabled=true, or take one member. `replicaCount` is: %d" $count) -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseStorage" -}}
{{- if and .Values.persistence.enabled (or .Values.ephemeral.medium .Values.ephemeral.sizeLimit) -}}
{{- fail (printf "`persistence.enabled` and `ephemeral` exclude each other; leave out one of the two. `ephemeral.medium` and `ephemeral.sizeLimit` are: `%s`, `%s`" .Values.ephemeral.medium .Values.ephemeral.sizeLimit) -}}
{{- end -}}
{{- if and (eq (.Values.etcd.unsafeNoFsync | toString) "true") (not (include "lattice.inMemory" .)) -}}
{{- fail "without syncing, a reboot of the machine leaves a log on disk that etcd cannot read; leave `etcd.unsafeNoFsync` at `auto`, or add --set ephemeral.medium=Memory. It is: `true`" -}}
{{- end -}}
{{- $limit := (default dict (default dict .Values.resources).limits).memory -}}
{{- if and (include "lattice.inMemory" .) $limit (le (int64 (include "lattice.bytes" $limit)) (int64 (include "lattice.bytes" (include "lattice.ephemeralSize" .)))) -}}
{{- fail (printf "data in memory counts against the container's memory limit, so etcd would be killed before its store is full; raise `resources.limits.memory` above %s bytes, or lower `etcd.quotaBackendBytes` or `ephemeral.sizeLimit`. `resources.limits.memory` is: `%v`" (include "lattice.bytes" (include "lattice.ephemeralSize" .)) $limit) -}}
{{- end -}}
{{- if and (eq .Values.persistence.whenDeleted "Delete") (semverCompare "<1.27-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "Kubernetes before 1.27 keeps the claims of a deleted StatefulSet (here is %s); leave `persistence.whenDeleted` at `Retain`. It is: `Delete`" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseVersion" -}}
{{- $version := include "lattice.version" . -}}
{{- if semverCompare "<3.4.0" $version -}}
{{- fail (printf "agents need etcd 3.4 or newer; change `image`, or `etcd.version` if that is wrong. The version is: `%s`" $version) -}}
{{- end -}}
{{- if eq (.Values.etcd.enableV2 | toString) "true" -}}
{{- if semverCompare ">=3.6.0" $version -}}
{{- fail (printf "etcd 3.6 and newer have no v2 API and do not start with its flag; set `etcd.enableV2` to `auto` or `false`, or take an image of etcd 3.5. `image` is: `%s`" (include "lattice.image" .)) -}}
{{- end -}}
{{- if .Values.auth.enabled -}}
{{- fail "users of etcd's v2 API are not those of v3: the store would be open through v2; set `etcd.enableV2` to `auto` or `false`, or leave out `auth.enabled`. `etcd.enableV2` is: `true`" -}}
{{- end -}}
{{- if include "lattice.stateful" . -}}
{{- fail "with v2 data on its volume etcd 3.6 does not start, so this store could never be upgraded; set `etcd.enableV2` to `auto` or `false`, or leave out `persistence.enabled`. `etcd.enableV2` is: `true`" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list root "client") */}}
{{- define "lattice.refuseTLS" -}}
{{- $root := index . 0 -}}
{{- $side := index . 1 -}}
{{- $tls := index $root.Values.tls $side -}}
{{- if and $tls.enabled (not $tls.existingSecret) -}}
{{- fail (printf "TLS needs a Secret with `tls.crt`, `tls.key` and `ca.crt` in the namespace `%s`; name it, for example --set tls.%s.existingSecret=rdzv-%s-tls. Empty is: `tls.%s.existingSecret`" $root.Release.Namespace $side $side $side) -}}
{{- end -}}
{{- if and $tls.existingSecret (not $tls.enabled) -}}
{{- fail (printf "the Secret is named, but TLS is not on; add --set tls.%s.enabled=true, or leave the name out. `tls.%s.existingSecret` is: `%s`" $side $side $tls.existingSecret) -}}
{{- end -}}
{{- if and $tls.caCertificate (not $tls.enabled) -}}
{{- fail "an authority is published to agents, but TLS is not on; add --set tls.client.enabled=true, or leave out `tls.client.caCertificate`" -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseAuth" -}}
{{- if .Values.auth.enabled -}}
{{- if not .Values.persistence.enabled -}}
{{- fail "users and passwords are part of the data, so every new pod of an ephemeral store would be open to anybody; add --set persistence.enabled=true, or protect the store with certificates instead, which no reset takes away: --set tls.client.enabled=true with `tls.client.requireClientCert` and `tls.client.existingSecret`. `auth.enabled` is: `true`" -}}
{{- end -}}
{{- if not .Values.auth.existingSecret -}}
{{- fail "authentication needs a Secret with the key `root-password` and one key for each of `auth.users`; name it, for example --set auth.existingSecret=rdzv-auth. Empty is: `auth.existingSecret`" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.auth.users -}}
{{- if has .name $names -}}{{- fail (printf "a user stands twice in `auth.users`: `%s`" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $first := first .Values.auth.users -}}
{{- if and $first.tenant .Values.agents.tenant (ne $first.tenant .Values.agents.tenant) -}}
{{- fail (printf "agents are told the first of `auth.users`, who may not use another tenant than his own; put a user of theirs first, or leave out `agents.tenant`. The tenants are, his and theirs: `%s`, `%s`" $first.tenant .Values.agents.tenant) -}}
{{- end -}}
{{- else if .Values.auth.existingSecret -}}
{{- fail (printf "the Secret is named, but authentication is not on; add --set auth.enabled=true, or leave the name out. `auth.existingSecret` is: `%s`" .Values.auth.existingSecret) -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseNames" -}}
{{- $names := list .Values.clientService.name .Values.serverService.name (include "lattice.membersService" .) (include "lattice.metricsService" .) -}}
{{- if ne (len $names) (len (uniq $names)) -}}
{{- fail (printf "two Services of the store would have one name; change `clientService.name` or `serverService.name`. The names are: `%s`" (join "`, `" $names)) -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refusePorts" -}}
{{- $peer := int .Values.serverService.serverPort.internalPort -}}
{{- $ports := list (int .Values.clientService.internalPort) (int .Values.serverService.clientPort.internalPort) | uniq -}}
{{- $ports = concat $ports (list $peer (int .Values.etcd.metricsPort)) -}}
{{- if .Values.auth.enabled -}}{{- $ports = concat $ports (list (int .Values.auth.port) (int .Values.auth.loopbackPort)) -}}{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- fail (printf "clients, peers, metrics and `auth` need ports of their own; change `clientService.internalPort`, `serverService.clientPort.internalPort`, `serverService.serverPort.internalPort`, `etcd.metricsPort`, `auth.port` or `auth.loopbackPort`. In this order they are: %s" (join ", " $ports)) -}}
{{- end -}}
{{- $server := .Values.serverService -}}
{{- if eq (int $server.clientPort.externalPort) (int $server.serverPort.externalPort) -}}
{{- fail (printf "the server Service needs two ports; change `serverService.clientPort.externalPort` or `serverService.serverPort.externalPort`. Both are: %d" (int $server.serverPort.externalPort)) -}}
{{- end -}}
{{- end -}}

{{/* (list root "clientService" .Values.clientService) */}}
{{- define "lattice.refuseExposure" -}}
{{- $root := index . 0 -}}
{{- $key := index . 1 -}}
{{- $service := index . 2 -}}
{{- if eq $service.type "ClusterIP" -}}
{{- range $name, $port := dict "nodePort" $service.nodePort "clientPort.nodePort" ($service.clientPort | default dict).nodePort "serverPort.nodePort" ($service.serverPort | default dict).nodePort -}}
{{- if $port -}}
{{- fail (printf "a Service of type `ClusterIP` has no port on machines; add --set %s.type=NodePort, or leave the port out. `%s.%s` is: %v" $key $key $name $port) -}}
{{- end -}}
{{- end -}}
{{- else if not $service.allowUnauthenticated -}}
{{- if not (include "lattice.closed" $root) -}}
{{- fail (printf "a Service of this type puts the store where anybody may read and write it, and with it every job; keep `ClusterIP`, or add --set tls.client.enabled=true with `tls.client.existingSecret`, and `tls.client.requireClientCert` or `auth.enabled`; if only the right machines get there, --set %s.allowUnauthenticated=true. `%s.type` is: `%s`" $key $key $service.type) -}}
{{- end -}}
{{- if not $root.Values.tls.client.enabled -}}
{{- fail (printf "a Service of this type carries passwords in the clear where others may listen; keep `ClusterIP`, or add --set tls.client.enabled=true with `tls.client.existingSecret`; if only the right machines get there, --set %s.allowUnauthenticated=true. With `auth.enabled` and no TLS, `%s.type` is: `%s`" $key $key $service.type) -}}
{{- end -}}
{{- if and (eq $key "serverService") (not $root.Values.tls.peer.enabled) -}}
{{- fail (printf "a Service of this type puts the peers' port where anybody may speak to it, which no client certificate or password protects; keep `ClusterIP`, or add --set tls.peer.enabled=true with `tls.peer.existingSecret`; if only the right machines get there, --set serverService.allowUnauthenticated=true. `serverService.type` is: `%s`" $service.type) -}}
{{- end -}}
{{- end -}}
{{- if and $service.loadBalancerSourceRanges (ne $service.type "LoadBalancer") -}}
{{- fail (printf "source ranges limit a load balancer only, so nobody would be kept out; add --set %s.type=LoadBalancer, or leave out `%s.loadBalancerSourceRanges`. `%s.type` is: `%s`" $key $key $key $service.type) -}}
{{- end -}}
{{- end -}}

{{- define "lattice.refuseOperations" -}}
{{- if and .Values.metrics.prometheusRule.enabled (not .Values.metrics.serviceMonitor.enabled) -}}
{{- fail "alerts need the metrics that they are about; add --set metrics.serviceMonitor.enabled=true, or leave out `metrics.prometheusRule.enabled`" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.agents.namespaces (not .Values.networkPolicy.agentNamespaceSelector) (semverCompare "<1.21-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "before Kubernetes 1.21 (here is %s) a namespace bears no label with its name; label those of agents and set `networkPolicy.agentNamespaceSelector`. `agents.namespaces` is: `%s`" .Capabilities.KubeVersion.Version (join "`, `" .Values.agents.namespaces)) -}}
{{- end -}}
{{- end -}}

{{/*
There is nothing to look up without a cluster. Another count the API server refuses anyway (see "lattice.store"), and this only
words it; other URLs nobody else refuses.
*/}}
{{- define "lattice.refuseLiveChange" -}}
{{- if and (include "lattice.stateful" .) (not .Values.cluster.allowRecreate) -}}
{{- $live := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "lattice.name" .) -}}
{{- if $live -}}
{{- $count := int $live.spec.replicas -}}
{{- $anew := printf "To make a new, empty store: kubectl delete statefulset,pvc -n %s -l app=%s, then --set cluster.allowRecreate=true and another `cluster.token`" .Release.Namespace (include "lattice.name" .) -}}
{{- if ne $count (int .Values.replicaCount) -}}
{{- fail (printf "the live store has %d members, and etcd does not follow a changed count by itself. %s; else keep the count. `replicaCount` is: %d" $count $anew (int .Values.replicaCount)) -}}
{{- end -}}
{{- $flag := printf "--initial-advertise-peer-urls=%s" (include "lattice.advertisePeerURL" .) -}}
{{- $args := list -}}
{{- range $live.spec.template.spec.containers -}}{{- if eq .name "etcd" -}}{{- $args = .args -}}{{- end -}}{{- end -}}
{{- if and (include "lattice.several" .) $args (not (has $flag $args)) -}}
{{- fail (printf "the members of the live store know each other by other URLs, and etcd does not follow a changed flag by itself: replaced one after the other, they would lose each other. %s; else keep `tls.peer.enabled`, `serverService.serverPort.internalPort` and `clusterDomain`. By these values it is: `%s`" $anew $flag) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
