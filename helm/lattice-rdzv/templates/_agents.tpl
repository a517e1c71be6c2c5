{{/*
The variables that agents read. `LATTICE_RDZV_CLIENT_SERVICE_HOST` and `_PORT` are not among them: Kubernetes sets these, and a
ConfigMap would override them.
*/}}

{{/* With users, agents are told the first of them, who may be of one tenant alone. */}}
{{- define "lattice.agentTenant" -}}
{{- if and .Values.auth.enabled (not .Values.agents.tenant) -}}
{{- (first .Values.auth.users).tenant | default "" -}}
{{- else -}}
{{- .Values.agents.tenant -}}
{{- end -}}
{{- end -}}

{{- define "lattice.agentEnvironment" -}}
LATTICE_RDZV_BACKEND: {{ .Values.rendezvous.backend | quote }}
{{- if .Values.agents.configMap.includeEndpoint }}
LATTICE_RDZV_ENDPOINTS: {{ include "lattice.endpoints" . | quote }}
{{- end }}
{{- with include "lattice.agentTenant" . }}
LATTICE_RDZV_TENANT: {{ . | quote }}
{{- end }}
{{- if .Values.tls.client.enabled }}
LATTICE_RDZV_CACERT: {{ printf "%s/ca.crt" .Values.agents.tlsMountPath | quote }}
{{- if .Values.tls.client.requireClientCert }}
LATTICE_RDZV_CERT: {{ printf "%s/tls.crt" .Values.agents.tlsMountPath | quote }}
LATTICE_RDZV_KEY: {{ printf "%s/tls.key" .Values.agents.tlsMountPath | quote }}
{{- end }}
{{- end }}
{{- if .Values.auth.enabled }}
{{- $user := (first .Values.auth.users).name }}
LATTICE_RDZV_USER: {{ $user | quote }}
LATTICE_RDZV_PASSWORD_FILE: {{ printf "%s/%s" .Values.agents.authMountPath $user | quote }}
{{- end }}
{{- end -}}

{{/* The pods that a NetworkPolicy admits as agents. */}}
{{- define "lattice.agentPeers" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $pods := toYaml (default dict $policy.agentPodSelector) -}}
- podSelector:
    {{- $pods | nindent 4 }}
{{- range .Values.agents.namespaces }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
  podSelector:
    {{- $pods | nindent 4 }}
{{- end }}
{{- with $policy.agentNamespaceSelector }}
- namespaceSelector:
    {{- toYaml . | nindent 4 }}
  podSelector:
    {{- $pods | nindent 4 }}
{{- end }}
{{- end -}}

{{/* DNS by its ports alone, because a cluster's DNS server may be a pod or run on each Kubernetes node. OpenShift's pods listen on 5353. */}}
{{- define "lattice.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    {{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}
    - {port: 5353, protocol: UDP}
    - {port: 5353, protocol: TCP}
    {{- end }}
{{- end -}}
