{{/* The arguments of etcd. Releases 3.4 to 3.7 accept all of them, except where a version is compared. */}}

{{- define "lattice.flags" -}}
{{- concat (include "lattice.ownFlags" . | fromYamlArray) (default list .Values.etcd.extraArgs) | toYaml -}}
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

{{/* The part of the table in _refusals.tpl for `etcd.extraArgs` and `etcd.extraEnv`. */}}
{{- define "lattice.argumentRefusals" -}}
{{- $guarded := include "lattice.guardedFlags" . | fromYaml -}}
{{- $own := list -}}
{{- range include "lattice.ownFlags" . | fromYamlArray -}}{{- $own = append $own (regexFind "^--[a-z0-9-]+" .) -}}{{- end -}}
{{- $malformed := list -}}
{{- $bypassing := list -}}
{{- $repeated := list -}}
{{- $experimental := list -}}
{{- range .Values.etcd.extraArgs -}}
{{- $name := regexFind "^--[a-z0-9-]+" . -}}
{{- if not $name -}}{{- $malformed = append $malformed (replace "\n" "\\n" .) -}}{{- end -}}
{{- if hasKey $guarded (trimPrefix "--" $name) -}}
{{- $bypassing = append $bypassing (printf "`%s`: %s" $name (get $guarded (trimPrefix "--" $name))) -}}
{{- else if has $name $own -}}
{{- $repeated = append $repeated $name -}}
{{- end -}}
{{- if hasPrefix "--experimental-" $name -}}{{- $experimental = append $experimental $name -}}{{- end -}}
{{- end -}}
{{- $variables := list -}}
{{- range .Values.etcd.extraEnv -}}
{{- $name := .name -}}
{{- with get $guarded ($name | trimPrefix "ETCD_" | lower | replace "_" "-") -}}
{{- if hasPrefix "ETCD_" $name -}}{{- $variables = append $variables (printf "`%s`: %s" $name .) -}}{{- end -}}
{{- end -}}
{{- end -}}
argument-without-flag:
  when: {{ gt (len $malformed) 0 }}
  text: >-
    each of `etcd.extraArgs` must be one `--flag=value` of etcd; change `{{ join "`, `" $malformed }}`
argument-that-bypasses-a-value:
  when: {{ gt (len $bypassing) 0 }}
  text: >-
    remove these flags from `etcd.extraArgs`. {{ join "; " $bypassing }}
argument-of-the-chart:
  when: {{ gt (len $repeated) 0 }}
  text: >-
    `etcd.extraArgs` repeats a flag that the chart sets from another value; set that value, or remove the flag: `{{ join "`, `" $repeated }}`
experimental-argument-on-new-etcd:
  when: {{ and (gt (len $experimental) 0) (eq (include "lattice.versionIs" (dict "root" . "range" ">=3.7.0")) "true") }}
  text: >-
    etcd 3.7 has no experimental flags and does not start with one (the image has {{ include "lattice.version" . }}); remove `experimental-` from the flag,
    or remove the flag from `etcd.extraArgs`: `{{ join "`, `" $experimental }}`
variable-that-bypasses-a-value:
  when: {{ gt (len $variables) 0 }}
  text: >-
    remove these variables from `etcd.extraEnv`. {{ join "; " $variables }}
{{- end -}}
