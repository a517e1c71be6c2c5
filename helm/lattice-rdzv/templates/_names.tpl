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

{{/*
Which pods are the store. The Deployment's own selector is `app` alone, for ever. Services select by `lattice-rdzv/store`
too, so that they never reach two stores while a Deployment and a StatefulSet take turns.
*/}}
{{- define "lattice.podSelector" -}}
app: {{ include "lattice.name" . }}
lattice-rdzv/store: {{ include "lattice.store" . }}
{{- end -}}

{{- define "lattice.podLabels" -}}
{{- $labels := include "lattice.podSelector" . | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/name" (include "lattice.name" .) -}}
{{- $_ := set $labels "app.kubernetes.io/instance" .Release.Name -}}
{{- merge $labels (default dict .Values.podLabels) (default dict .Values.commonLabels) | toYaml -}}
{{- end -}}

{{- define "lattice.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "lattice.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}
