{{/* The kind of workload, derived from the values alone. Each template returns "true" or nothing. */}}

{{- define "lattice.external" -}}{{- if .Values.external.endpoints -}}true{{- end -}}{{- end -}}

{{- define "lattice.stateful" -}}
{{- if or .Values.persistence.enabled (gt (int .Values.replicaCount) 1) -}}true{{- end -}}
{{- end -}}

{{- define "lattice.several" -}}{{- if gt (int .Values.replicaCount) 1 -}}true{{- end -}}{{- end -}}

{{- define "lattice.inMemory" -}}
{{- if and (eq .Values.ephemeral.medium "Memory") (not (include "lattice.stateful" .)) -}}true{{- end -}}
{{- end -}}

{{/* The value of the label `lattice-rdzv/store`. It contains the number of members and is part of the StatefulSet's selector, so
the API server rejects a change of that number while the StatefulSet exists. */}}
{{- define "lattice.store" -}}
{{- if include "lattice.stateful" . -}}members-{{ int .Values.replicaCount }}{{- else -}}ephemeral{{- end -}}
{{- end -}}
