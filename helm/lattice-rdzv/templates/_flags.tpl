{{/* The arguments of etcd: what all of 3.4 to 3.7 take, and what only some do. */}}

{{- define "lattice.flags" -}}
{{- $values := .Values -}}
{{- $flags := list
  "--name=$(POD_NAME)"
  "--data-dir=/var/lib/etcd/data"
  (printf "--listen-client-urls=%s" (include "lattice.listenClientURLs" .))
  (printf "--advertise-client-urls=%s" (include "lattice.advertiseClientURL" .))
  (printf "--listen-peer-urls=%s://0.0.0.0:%d" (include "lattice.peerScheme" .) (int $values.serverService.serverPort.internalPort))
  (printf "--initial-advertise-peer-urls=%s" (include "lattice.advertisePeerURL" .))
  (printf "--initial-cluster=%s" (include "lattice.initialCluster" .))
  (printf "--initial-cluster-state=%s" $values.cluster.initialState)
-}}
{{- /* A store that comes back empty gets another cluster id by this, which is how clients see it. */ -}}
{{- if include "lattice.several" . -}}
{{- $flags = append $flags (printf "--initial-cluster-token=%s" $values.cluster.token) -}}
{{- else -}}
{{- $flags = append $flags "--initial-cluster-token=$(POD_UID)" -}}
{{- end -}}
{{- $flags = concat $flags (list
  (printf "--listen-metrics-urls=http://0.0.0.0:%d" (int $values.etcd.metricsPort))
  (printf "--auto-compaction-mode=%s" $values.etcd.autoCompactionMode)
  (printf "--auto-compaction-retention=%v" $values.etcd.autoCompactionRetention)
  (printf "--quota-backend-bytes=%s" (include "lattice.quotaBytes" .))
  (printf "--max-request-bytes=%d" (int64 $values.etcd.maxRequestBytes))
  "--logger=zap"
  (printf "--log-level=%s" $values.etcd.logLevel)
) -}}
{{- if include "lattice.enableV2" . -}}{{- $flags = append $flags "--enable-v2=true" -}}{{- end -}}
{{- if and (include "lattice.inMemory" .) (ne ($values.etcd.unsafeNoFsync | toString) "false") -}}
{{- $flags = append $flags "--unsafe-no-fsync=true" -}}
{{- end -}}
{{- if $values.tls.client.enabled -}}
{{- $flags = concat $flags (list
  "--cert-file=/etc/lattice-rdzv/tls/client/tls.crt"
  "--key-file=/etc/lattice-rdzv/tls/client/tls.key"
) -}}
{{- /* etcd wants certificates as soon as an authority is named, whatever `--client-cert-auth` says. */ -}}
{{- if $values.tls.client.requireClientCert -}}
{{- $flags = concat $flags (list "--trusted-ca-file=/etc/lattice-rdzv/tls/client/ca.crt" "--client-cert-auth=true") -}}
{{- end -}}
{{- end -}}
{{- if $values.tls.peer.enabled -}}
{{- $flags = concat $flags (list
  "--peer-cert-file=/etc/lattice-rdzv/tls/peer/tls.crt"
  "--peer-key-file=/etc/lattice-rdzv/tls/peer/tls.key"
  "--peer-trusted-ca-file=/etc/lattice-rdzv/tls/peer/ca.crt"
  "--peer-client-cert-auth=true"
) -}}
{{- end -}}
{{- include "lattice.refuseExtraArgs" (list . $flags) -}}
{{- concat $flags (default list $values.etcd.extraArgs) | toYaml -}}
{{- end -}}

{{/* Each of these would keep etcd from starting, or be taken for another part's word. */}}
{{- define "lattice.refuseExtraArgs" -}}
{{- $root := index . 0 -}}
{{- $ours := list -}}
{{- range index . 1 -}}{{- $ours = append $ours (regexFind "^--[a-z0-9-]+" .) -}}{{- end -}}
{{- range $root.Values.etcd.extraArgs -}}
{{- $name := regexFind "^--[a-z0-9-]+" . -}}
{{- if not $name -}}
{{- fail (printf "each of `etcd.extraArgs` has to be one `--flag=value` of etcd: `%s`" .) -}}
{{- end -}}
{{- if has $name $ours -}}
{{- fail (printf "`etcd.extraArgs` repeats a flag that the chart sets from another value; set that value, or leave it out: `%s`" $name) -}}
{{- end -}}
{{- if and (hasPrefix "--experimental-" $name) (include "lattice.versionIs" (list $root ">=3.7.0")) -}}
{{- fail (printf "etcd 3.7 has no experimental flags and does not start with one (here is %s); give it without `experimental-`, or take it from `etcd.extraArgs`: `%s`" (include "lattice.version" $root) $name) -}}
{{- end -}}
{{- if and (has $name (list "--enable-v2" "--proxy" "--discovery" "--discovery-srv")) (include "lattice.versionIs" (list $root ">=3.6.0")) -}}
{{- fail (printf "etcd %s does not start with this flag; take it from `etcd.extraArgs`: `%s`" (include "lattice.version" $root) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
