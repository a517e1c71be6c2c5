{{/* The arguments of etcd. Releases 3.4 to 3.7 accept all of them, except where a version is compared. */}}

{{- define "lattice.flags" -}}
{{- $flags := include "lattice.ownFlags" . | fromYamlArray -}}
{{- include "lattice.refuseExtraArgs" (dict "root" . "flags" $flags) -}}
{{- concat $flags (default list .Values.etcd.extraArgs) | toYaml -}}
{{- end -}}

{{- define "lattice.ownFlags" -}}
- --name=$(POD_NAME)
- --data-dir=/var/lib/etcd/data
- --listen-client-urls={{ include "lattice.listenClientURLs" . }}
- --advertise-client-urls={{ include "lattice.advertiseClientURL" . }}
- --listen-peer-urls={{ include "lattice.listenPeerURL" . }}
- --initial-advertise-peer-urls={{ include "lattice.advertisePeerURL" . }}
- --initial-cluster={{ include "lattice.initialCluster" . }}
- --initial-cluster-state={{ .Values.cluster.initialState }}
- --initial-cluster-token={{ include "lattice.clusterToken" . }}
- --listen-metrics-urls=http://0.0.0.0:{{ int .Values.etcd.metricsPort }}
- --auto-compaction-mode={{ .Values.etcd.autoCompactionMode }}
- --auto-compaction-retention={{ include "lattice.wholeNumber" .Values.etcd.autoCompactionRetention }}
- --quota-backend-bytes={{ include "lattice.quotaBytes" . }}
- --max-request-bytes={{ int64 .Values.etcd.maxRequestBytes }}
- --logger=zap
- --log-level={{ .Values.etcd.logLevel }}
{{- if include "lattice.enableV2" . }}
- --enable-v2=true
{{- end }}
{{- if and (include "lattice.inMemory" .) (ne (.Values.etcd.unsafeNoFsync | toString) "false") }}
- --unsafe-no-fsync=true
{{- end }}
{{- if .Values.tls.client.enabled }}
- --cert-file=/etc/lattice-rdzv/tls/client/tls.crt
- --key-file=/etc/lattice-rdzv/tls/client/tls.key
{{- /* etcd requires client certificates as soon as a CA is named, whatever `--client-cert-auth` is. */}}
{{- if .Values.tls.client.requireClientCert }}
- --trusted-ca-file=/etc/lattice-rdzv/tls/client/ca.crt
- --client-cert-auth=true
{{- end }}
{{- end }}
{{- if .Values.tls.peer.enabled }}
- --peer-cert-file=/etc/lattice-rdzv/tls/peer/tls.crt
- --peer-key-file=/etc/lattice-rdzv/tls/peer/tls.key
- --peer-trusted-ca-file=/etc/lattice-rdzv/tls/peer/ca.crt
- --peer-client-cert-auth=true
{{- /*
By default etcd compares a peer's address with the certificate, by a reverse lookup where the certificate has only names. That
fails without PTR records, behind source NAT and in a service mesh. The peer CA decides who is a peer.
*/}}
- --{{ if include "lattice.versionIs" (dict "root" . "range" "<3.6.0") }}experimental-{{ end }}peer-skip-client-san-verification=true
{{- end }}
{{- end -}}

{{/*
Identifies a cluster. etcd reads it once, when it starts without data, and clients recognize a new cluster by it.
For one member, the UID of the pod is unique. Several members need a token that is equal for all of them, that no other cluster ever had,
and that renders identically each time: the addresses that Kubernetes assigned to the two Services of this release. They do not change
during the lifetime of the release, and a reinstalled release gets others. docs/runbooks/quorum-lost.md changes `cluster.token` for a new
cluster of an existing release.
*/}}
{{- define "lattice.clusterToken" -}}
{{- if include "lattice.several" . -}}
{{ .Values.cluster.token }}-$({{ include "lattice.serviceVariable" .Values.clientService.name }})-$({{ include "lattice.serviceVariable" .Values.serverService.name }})
{{- else -}}
$(POD_UID)
{{- end -}}
{{- end -}}

{{/* The environment variable in which Kubernetes passes a Service's address to a pod. */}}
{{- define "lattice.serviceVariable" -}}{{ . | upper | replace "-" "_" }}_SERVICE_HOST{{- end -}}

{{/* Numbers in a values file are floats, and Go prints floats from a million on as 1e+06. */}}
{{- define "lattice.wholeNumber" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- int64 . -}}{{- end -}}
{{- end -}}

{{/* Flags of `etcd.extraArgs` and variables of `etcd.extraEnv` that would bypass a value of the chart or its checks. */}}
{{- define "lattice.guardedFlags" -}}
enable-v2: set `etcd.enableV2` instead
unsafe-no-fsync: set `etcd.unsafeNoFsync` instead
force-new-cluster: it discards the other members; docs/runbooks/quorum-lost.md creates a new cluster
auto-tls: set `tls.client` instead
peer-auto-tls: set `tls.peer` instead
client-cert-auth: set `tls.client.requireClientCert` instead
client-cert-allowed-hostname: set `tls.client` instead
trusted-ca-file: set `tls.client` instead
cert-file: set `tls.client` instead
key-file: set `tls.client` instead
peer-client-cert-auth: set `tls.peer` instead
peer-trusted-ca-file: set `tls.peer` instead
peer-cert-file: set `tls.peer` instead
peer-key-file: set `tls.peer` instead
proxy: the chart runs members, not proxies
discovery: the chart names the members itself
discovery-srv: the chart names the members itself
discovery-endpoints: the chart names the members itself
config-file: etcd ignores all other arguments beside it
listen-peer-urls: set `serverService.serverPort` instead
listen-client-urls: set `clientService.internalPort` instead
listen-client-http-urls: the chart's ports, policies and probes do not cover it
{{- end -}}

{{/* Rejects flags that would keep etcd from starting, or that another value of the chart sets. */}}
{{- define "lattice.refuseExtraArgs" -}}
{{- $root := .root -}}
{{- $guarded := include "lattice.guardedFlags" . | fromYaml -}}
{{- $ours := list -}}
{{- range .flags -}}{{- $ours = append $ours (regexFind "^--[a-z0-9-]+" .) -}}{{- end -}}
{{- range $root.Values.etcd.extraArgs -}}
{{- $name := regexFind "^--[a-z0-9-]+" . -}}
{{- if not $name -}}
{{- fail (printf "each of `etcd.extraArgs` must be one `--flag=value` of etcd, but one is: `%s`" .) -}}
{{- end -}}
{{- with get $guarded (trimPrefix "--" $name) -}}
{{- fail (printf "`etcd.extraArgs` must not have `%s`: %s" $name .) -}}
{{- end -}}
{{- if has $name $ours -}}
{{- fail (printf "`etcd.extraArgs` repeats a flag that the chart sets from another value; set that value, or remove the flag: `%s`" $name) -}}
{{- end -}}
{{- if and (hasPrefix "--experimental-" $name) (include "lattice.versionIs" (dict "root" $root "range" ">=3.7.0")) -}}
{{- fail (printf "etcd 3.7 has no experimental flags and does not start with one (the image has %s); remove `experimental-` from the flag, or remove the flag from `etcd.extraArgs`: `%s`" (include "lattice.version" $root) $name) -}}
{{- end -}}
{{- end -}}
{{- range $root.Values.etcd.extraEnv -}}
{{- $flag := .name | trimPrefix "ETCD_" | lower | replace "_" "-" -}}
{{- if hasPrefix "ETCD_" .name -}}
{{- with get $guarded $flag -}}
{{- fail (printf "`etcd.extraEnv` must not have `ETCD_%s`: %s" ($flag | upper | replace "-" "_") .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
