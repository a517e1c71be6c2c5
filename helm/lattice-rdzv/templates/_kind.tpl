{{/* What kind of store it is, from the values alone: a truth is "true", and what is not so is empty. */}}

{{- define "lattice.external" -}}{{- if .Values.external.endpoints -}}true{{- end -}}{{- end -}}

{{- define "lattice.stateful" -}}
{{- if or .Values.persistence.enabled (gt (int .Values.replicaCount) 1) -}}true{{- end -}}
{{- end -}}

{{- define "lattice.several" -}}{{- if gt (int .Values.replicaCount) 1 -}}true{{- end -}}{{- end -}}

{{- define "lattice.inMemory" -}}
{{- if and (eq .Values.ephemeral.medium "Memory") (not (include "lattice.stateful" .)) -}}true{{- end -}}
{{- end -}}

{{/* The value of the label `lattice-rdzv/store`. The member count is in it, and it is in the StatefulSet's selector: so
the API server itself refuses to change the count of a live store. */}}
{{- define "lattice.store" -}}
{{- if include "lattice.stateful" . -}}members-{{ int .Values.replicaCount }}{{- else -}}ephemeral{{- end -}}
{{- end -}}
