{{/* The quota of the database, and how much memory a store in memory may take. */}}

{{- define "lattice.quotaBytes" -}}
{{- $given := int64 .Values.etcd.quotaBackendBytes -}}
{{- if $given -}}{{- $given -}}
{{- else if include "lattice.inMemory" . -}}536870912
{{- else -}}2147483648
{{- end -}}
{{- end -}}

{{/* Twice the quota, because a defragmentation writes the database anew beside the old one, and 512 MiB of logs. */}}
{{- define "lattice.ephemeralSize" -}}
{{- if .Values.ephemeral.sizeLimit -}}{{- .Values.ephemeral.sizeLimit -}}
{{- else if include "lattice.inMemory" . -}}{{- add (mul 2 (int64 (include "lattice.quotaBytes" .))) 536870912 -}}
{{- end -}}
{{- end -}}
