{{/*
Probes use plain HTTP on the metrics port, also if clients require TLS. The liveness probe does not depend on the other
members. Otherwise, a lost quorum would make Kubernetes restart the remaining members.
*/}}

{{- define "lattice.livePath" -}}
{{- if or (include "lattice.embedded" .) (include "lattice.hasLivez" .) -}}/livez
{{- else if include "lattice.versionIs" (list . ">=3.5.3") -}}/health?serializable=true&exclude=NOSPACE
{{- else -}}
{{- /* Older ones overlook `serializable`, and ask the other members. */ -}}
/metrics
{{- end -}}
{{- end -}}

{{/* A full database still serves reads and deletes, so it stays in the Services. */}}
{{- define "lattice.readyPath" -}}
{{- if or (include "lattice.embedded" .) (include "lattice.hasLivez" .) -}}/readyz{{- else -}}/health?exclude=NOSPACE{{- end -}}
{{- end -}}

{{/* (list root path "startup") */}}
{{- define "lattice.probe" -}}
{{- $times := index (index . 0).Values.probes (index . 2) -}}
httpGet:
  path: {{ index . 1 | quote }}
  port: metrics
periodSeconds: {{ int64 $times.periodSeconds }}
timeoutSeconds: {{ int64 $times.timeoutSeconds }}
failureThreshold: {{ int64 $times.failureThreshold }}
{{- end -}}

{{- define "lattice.probes" -}}
startupProbe:
  {{- include "lattice.probe" (list . (include "lattice.livePath" .) "startup") | nindent 2 }}
livenessProbe:
  {{- include "lattice.probe" (list . (include "lattice.livePath" .) "liveness") | nindent 2 }}
readinessProbe:
  {{- include "lattice.probe" (list . (include "lattice.readyPath" .) "readiness") | nindent 2 }}
{{- end -}}
