{{/* The quota of the database, and the maximum size of data in memory. */}}

{{/* A quantity of Kubernetes as in the values. Helm reads an integer as a float, which it would print as 1e+10. */}}
{{- define "lattice.quantity" -}}{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- int64 . -}}{{- end -}}{{- end -}}

{{/* A quantity of Kubernetes, such as `1.5Gi`, in bytes. */}}
{{- define "lattice.bytes" -}}
{{- $number := regexFind "^[0-9.]+([eE][+-]?[0-9]+)?" (toString .) -}}
{{- $decimal := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $binary := dict "Ki" 0x1p10 "Mi" 0x1p20 "Gi" 0x1p30 "Ti" 0x1p40 "Pi" 0x1p50 "Ei" 0x1p60 -}}
{{- mulf (float64 $number) (get (merge $decimal $binary) (trimPrefix $number (toString .))) | int64 -}}
{{- end -}}

{{- define "lattice.quotaBytes" -}}
{{- $given := int64 .Values.etcd.quotaBackendBytes -}}
{{- if $given -}}{{- $given -}}
{{- else if include "lattice.inMemory" . -}}536870912
{{- else -}}2147483648
{{- end -}}
{{- end -}}

{{/* Twice the quota, because a defragmentation writes a new database beside the old one, plus 512 MiB of logs. */}}
{{- define "lattice.ephemeralSize" -}}
{{- if .Values.ephemeral.sizeLimit -}}{{- include "lattice.quantity" .Values.ephemeral.sizeLimit -}}
{{- else if include "lattice.inMemory" . -}}{{- add (mul 2 (int64 (include "lattice.quotaBytes" .))) 536870912 -}}
{{- end -}}
{{- end -}}
