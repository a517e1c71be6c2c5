{{/* What a pod and a container may do: the values, less what the cluster is too old for. */}}

{{- define "lattice.podSecurityContext" -}}
{{- $context := deepCopy (.Values.podSecurityContext | default dict) -}}
{{- if semverCompare "<1.20-0" .Capabilities.KubeVersion.Version -}}{{- $context = omit $context "seccompProfile" -}}{{- end -}}
{{- with $context -}}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "lattice.containerSecurityContext" -}}
{{- with .Values.containerSecurityContext -}}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Whoever has no certificate or password of ours is refused. */}}
{{- define "lattice.closed" -}}
{{- if or .Values.auth.enabled (and .Values.tls.client.enabled .Values.tls.client.requireClientCert) -}}true{{- end -}}
{{- end -}}
