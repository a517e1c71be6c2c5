{{/* Where pods run. Each key that the values do not set gets a default. */}}

{{- define "lattice.spread" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "lattice.affinity" . | fromYaml }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "lattice.tolerations" . | fromYamlArray }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "lattice.spreadConstraints" . | fromYamlArray }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Several members prefer separate Kubernetes nodes and zones, also with a `nodeAffinity` in the values. */}}
{{- define "lattice.affinity" -}}
{{- $affinity := deepCopy (default dict .Values.affinity) -}}
{{- if and (include "lattice.several" .) (not (hasKey $affinity "podAntiAffinity")) -}}
{{- $selector := dict "matchLabels" (include "lattice.podSelector" . | fromYaml) -}}
{{- $terms := list -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $terms = append $terms (dict "weight" 100 "podAffinityTerm" (dict "labelSelector" $selector "topologyKey" $key)) -}}
{{- end -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" $terms) -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{- define "lattice.spreadConstraints" -}}
{{- $constraints := default list .Values.topologySpreadConstraints -}}
{{- if and (include "lattice.several" .) (not $constraints) -}}
{{- $selector := dict "matchLabels" (include "lattice.podSelector" . | fromYaml) -}}
{{- $constraints = list (dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector) -}}
{{- end -}}
{{- toYaml $constraints -}}
{{- end -}}

{{/*
A single member leaves a lost Kubernetes node after 30 s instead of the default 300 s, because no other member serves in the meantime. A pod
with a volume is replaced only when Kubernetes knows that the Kubernetes node is gone.
*/}}
{{- define "lattice.tolerations" -}}
{{- $tolerations := default list .Values.tolerations -}}
{{- $keys := list -}}
{{- range $tolerations -}}{{- $keys = append $keys (default "" .key) -}}{{- end -}}
{{- if not (include "lattice.several" .) -}}
{{- range $key := list "node.kubernetes.io/not-ready" "node.kubernetes.io/unreachable" -}}
{{- if not (has $key $keys) -}}
{{- $tolerations = append $tolerations (dict "key" $key "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" 30) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $tolerations -}}
{{- end -}}
