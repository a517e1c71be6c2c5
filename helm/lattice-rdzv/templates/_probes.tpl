{{/*
Probes use plain HTTP on the metrics port, also if clients require TLS. The liveness probe does not depend on the other
members. Otherwise, a lost quorum would make Kubernetes restart the remaining members.
*/}}

{{- define "lattice.livePath" -}}
{{- if or (include "lattice.embedded" .) (include "lattice.hasLivez" .) -}}/livez
{{- else if include "lattice.versionIs" (dict "root" . "range" ">=3.5.3") -}}/health?serializable=true&exclude=NOSPACE
{{- else -}}
{{- /* Older ones overlook `serializable`, and ask the other members. */ -}}
/metrics
{{- end -}}
{{- end -}}

{{/* A full database still serves reads and deletes, so it stays in the Services. */}}
{{- define "lattice.readyPath" -}}
{{- if or (include "lattice.embedded" .) (include "lattice.hasLivez" .) -}}/readyz{{- else -}}/health?exclude=NOSPACE{{- end -}}
{{- end -}}

{{/* (dict "root" . "path" "/livez" "kind" "startup") */}}
{{- define "lattice.probe" -}}
{{- $times := index .root.Values.probes .kind -}}
httpGet:
  path: {{ .path | quote }}
  port: metrics
periodSeconds: {{ int64 $times.periodSeconds }}
timeoutSeconds: {{ int64 $times.timeoutSeconds }}
failureThreshold: {{ int64 $times.failureThreshold }}
{{- end -}}

{{- define "lattice.probes" -}}
startupProbe:
  {{- include "lattice.probe" (dict "root" . "path" (include "lattice.livePath" .) "kind" "startup") | nindent 2 }}
livenessProbe:
  {{- include "lattice.probe" (dict "root" . "path" (include "lattice.livePath" .) "kind" "liveness") | nindent 2 }}
readinessProbe:
  {{- include "lattice.probe" (dict "root" . "path" (include "lattice.readyPath" .) "kind" "readiness") | nindent 2 }}
{{- end -}}
