{{/* Names and labels of the objects. They do not depend on the release's name, because agents look for these names. */}}

{{- define "lattice.name" -}}lattice-rdzv{{- end -}}
{{- define "lattice.membersService" -}}lattice-rdzv-members{{- end -}}
{{- define "lattice.metricsService" -}}lattice-rdzv-metrics{{- end -}}
{{- define "lattice.configMap" -}}lattice-rdzv-config{{- end -}}
{{- define "lattice.caConfigMap" -}}lattice-rdzv-ca{{- end -}}
{{- define "lattice.authConfigMap" -}}lattice-rdzv-auth{{- end -}}

{{/* The labels of every object, but not of pods: the chart's version in them would restart etcd at each upgrade. */}}
{{- define "lattice.labels" -}}
{{- $labels := dict
  "app" (include "lattice.name" .)
  "app.kubernetes.io/name" (include "lattice.name" .)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_"))
-}}
{{- merge $labels (default dict .Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* (dict "root" . "own" labels): the labels from the values of a Service or a ServiceMonitor, which cannot replace the chart's labels */}}
{{- define "lattice.labelsWith" -}}
{{- merge (include "lattice.labels" .root | fromYaml) (default dict .own) | toYaml -}}
{{- end -}}

{{/* (dict "root" . "own" annotations): an object's own annotations over `commonAnnotations`, with their key, or nothing */}}
{{- define "lattice.annotations" -}}
{{- with merge (deepCopy (default dict .own)) (default dict .root.Values.commonAnnotations) -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/*
Selects the etcd pods. The Deployment's selector is `app` alone, because a selector is immutable. Services also select by
`lattice-rdzv/store`, so that they never reach two etcds while a StatefulSet replaces a Deployment or the reverse.
*/}}
{{- define "lattice.podSelector" -}}
app: {{ include "lattice.name" . }}
lattice-rdzv/store: {{ include "lattice.store" . }}
{{- end -}}

{{/*
The StatefulSet's selector, which is immutable. It contains the number of members, and with several members the parts of their peer URLs:
etcd keeps the peer URLs with which it was created, so members with other URLs would lose each other one by one.
*/}}
{{- define "lattice.memberSelector" -}}
{{ include "lattice.podSelector" . }}
{{- if include "lattice.several" . }}
lattice-rdzv/peers: {{ printf "%s-%d-%s" (include "lattice.peerScheme" .) (int .Values.serverService.serverPort.internalPort) (.Values.clusterDomain | sha256sum | trunc 8) }}
{{- end }}
{{- end -}}

{{- define "lattice.podLabels" -}}
{{- $labels := ternary (include "lattice.memberSelector" .) (include "lattice.podSelector" .) (eq (include "lattice.stateful" .) "true") | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/name" (include "lattice.name" .) -}}
{{- $_ := set $labels "app.kubernetes.io/instance" .Release.Name -}}
{{- merge $labels (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml -}}
{{- end -}}

{{- define "lattice.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "lattice.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}
