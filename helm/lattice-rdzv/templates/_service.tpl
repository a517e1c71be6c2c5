{{/* The common parts of the specs of the client and the server Service. */}}

{{/* (dict "root" . "service" .Values.clientService) */}}
{{- define "lattice.serviceSpec" -}}
type: {{ .service.type }}
{{- with .service.loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with .service.loadBalancerSourceRanges }}
loadBalancerSourceRanges:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .service.externalTrafficPolicy }}
externalTrafficPolicy: {{ . }}
{{- end }}
{{- with .service.internalTrafficPolicy }}
internalTrafficPolicy: {{ . }}
{{- end }}
{{- with .service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
selector:
  {{- include "lattice.podSelector" .root | nindent 2 }}
{{- end -}}
