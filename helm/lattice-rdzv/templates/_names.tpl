{{/* What objects are called and labelled. Nothing depends on the release's name: agents look for these names. */}}

{{- define "lattice.name" -}}lattice-rdzv{{- end -}}
{{- define "lattice.membersService" -}}lattice-rdzv-members{{- end -}}
{{- define "lattice.metricsService" -}}lattice-rdzv-metrics{{- end -}}
{{- define "lattice.configMap" -}}lattice-rdzv-config{{- end -}}
{{- define "lattice.caConfigMap" -}}lattice-rdzv-ca{{- end -}}
{{- define "lattice.authConfigMap" -}}lattice-rdzv-auth{{- end -}}

{{/* Of every object's metadata. Not of pods: the chart's version in them would restart the store at each upgrade. */}}
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

{{/* A Service's or a ServiceMonitor's own labels may not replace ours. */}}
{{- define "lattice.labelsWith" -}}
{{- $own := index . 0 -}}
{{- $root := index . 1 -}}
{{- merge (include "lattice.labels" $root | fromYaml) $own | toYaml -}}
{{- end -}}

{{/* (dict "root" . "own" annotations): an object's own annotations over `commonAnnotations`, with their key, or nothing */}}
{{- define "lattice.annotations" -}}
{{- with merge (deepCopy (default dict .own)) (default dict .root.Values.commonAnnotations) -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/*
Which pods are the store. The Deployment's own selector is `app` alone, for ever. Services select by `lattice-rdzv/store`
too, so that they never reach two stores while a Deployment and a StatefulSet take turns.
*/}}
{{- define "lattice.podSelector" -}}
app: {{ include "lattice.name" . }}
lattice-rdzv/store: {{ include "lattice.store" . }}
{{- end -}}

{{/*
The StatefulSet's own selector, which never changes in its lifetime. It has the member count, and with several members what they know
each other by: etcd keeps the peer URLs that it was created with, so members with others would lose each other one by one.
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
